"""How the connections that a server lets in are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pgdbm.ground.endpoint import Endpoint

MOST_IN_POOL, FEWEST_IN_POOL = 10, 2
MOST_DATABASES, FEWEST_DATABASES = 9, 2
FEWEST_IDLE = 2


@dataclass(frozen=True)
class Budget:
    """What one of a run's processes may have.

    `pool` is the most connections of one loop's pool, from two to ten. `databases` is how many databases of sets are
    kept at most, from two to nine; each takes some ten megabytes. `idle` is how many connections the pool of one of
    them keeps open while no test has it.
    """

    pool: int
    databases: int
    idle: int

    @classmethod
    def of(cls, endpoint: Endpoint, workers: int) -> Budget:
        """A worker's share of what the server lets in.

        One connection builds and resets schemas, one makes databases, and one resets in each of these.
        """
        share = (endpoint.max_connections - endpoint.reserved_connections) // max(workers, 1)
        pool = _between(FEWEST_IN_POOL, share - 1, MOST_IN_POOL)
        left = share - 2 - pool
        databases = _between(FEWEST_DATABASES, left // (1 + FEWEST_IDLE), MOST_DATABASES)
        return cls(pool, databases, _between(FEWEST_IDLE, left // databases - 1, pool))


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(most, wanted))
