"""How the connections that a server lets in are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pgdbm.ground.endpoint import Endpoint

FEWEST_OF_A_WORKER = 3
"""One that builds and holds the locks, and a pool's two."""

MOST_IN_POOL, FEWEST_IN_POOL = 10, 2
MOST_DATABASES, FEWEST_DATABASES = 9, 2
FEWEST_IDLE = 2


@dataclass(frozen=True)
class Budget:
    """What one of a run's processes may have.

    `pool` is the most connections of one loop's pool, from two to ten. `databases` is how many databases of sets are
    kept at most, from one to nine; each takes some ten megabytes. `idle` is how many connections the pool of one of
    them keeps open while no test has it. `seats` is how many connections all pools of the process may have together,
    in all loops and waiting for one. Where that would be fewer than two it is 0, and `tickets` is how many connections
    the pools of all workers have in turn; otherwise `tickets` is 0.
    """

    pool: int
    databases: int
    idle: int
    seats: int
    tickets: int = 0

    @classmethod
    def of(cls, endpoint: Endpoint, workers: int) -> Budget:
        """A worker's share of what the server lets in.

        One connection builds and resets schemas, one does so in each database of a set, and one is kept for what comes
        and goes: making a database, ending what a test has left.
        """
        usable, workers = endpoint.max_connections - endpoint.reserved_connections, max(workers, 1)
        share = usable // workers
        if share < FEWEST_OF_A_WORKER:
            return cls(FEWEST_IN_POOL, 1, FEWEST_IDLE, 0, max(usable - workers - 1, FEWEST_IN_POOL))
        seats = max(share - 2, FEWEST_IN_POOL)
        pool = min(seats, MOST_IN_POOL)
        left = share - 2 - pool
        least = FEWEST_DATABASES if share >= 4 + FEWEST_IN_POOL * FEWEST_DATABASES else 1
        databases = _between(least, left // (1 + FEWEST_IDLE), MOST_DATABASES)
        return cls(pool, databases, _between(FEWEST_IDLE, left // databases - 1, pool), seats)


def fitting(endpoint: Endpoint) -> int:
    """The most workers that a server has room for, none of which has to wait for its turn."""
    return max((endpoint.max_connections - endpoint.reserved_connections) // FEWEST_OF_A_WORKER, 1)


def needed(endpoint: Endpoint, workers: int) -> int:
    """The least `max_connections` with which none of so many workers has to wait for its turn."""
    return FEWEST_OF_A_WORKER * max(workers, 1) + endpoint.reserved_connections


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(most, wanted))
