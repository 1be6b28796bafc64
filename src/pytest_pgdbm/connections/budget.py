"""How the connections that a server lets in are shared out."""

from __future__ import annotations

from typing import NamedTuple

from pytest_pgdbm.ground.endpoint import Endpoint

FEWEST_OF_A_WORKER = 3
"""One that builds and holds the locks, and a pool's two."""

FEWEST_WITH_DATABASES = 5
"""With isolation `database`: one more in the database of the set, and one for what comes and goes."""

MOST_IN_POOL, FEWEST_IN_POOL = 10, 2
MOST_DATABASES, FEWEST_DATABASES = 9, 2
FEWEST_IDLE = 2


class Budget(NamedTuple):
    """What one of a run's processes may have.

    `pool` is the most connections of one loop's pool, from two to ten. `databases` is how many databases of sets are
    kept at most, up to nine, each of some ten megabytes; 0 where there is no room for the connections of one. `idle` is
    how many connections the pool of one of them keeps open while no test has it. `seats` is how many connections all
    pools of the process may have together, in all loops and waiting for one. Where that would be fewer than two it is
    0, and `tickets` is how many connections the pools of all workers have in turn; otherwise `tickets` is 0. `spare` is
    whether a connection more is kept for what comes and goes; where none is, the one that builds does that, too.
    """

    pool: int
    databases: int
    idle: int
    seats: int
    tickets: int = 0
    spare: bool = True

    @classmethod
    def of(cls, endpoint: Endpoint, workers: int) -> Budget:
        """A worker's share of what the server lets in.

        One connection builds and resets schemas, one does so in each database of a set, and one is kept for what comes
        and goes: ending what a test has left, sweeping.
        """
        usable, workers = endpoint.max_connections - endpoint.reserved_connections, max(workers, 1)
        share = usable // workers
        if share < FEWEST_OF_A_WORKER:
            tickets = max(usable - workers - 1, FEWEST_IN_POOL)
            return cls(FEWEST_IN_POOL, 0, FEWEST_IDLE, 0, tickets, spare=False)
        seats = max(share - 2, FEWEST_IN_POOL)
        pool = min(seats, MOST_IN_POOL)
        spare = share > FEWEST_OF_A_WORKER
        if share < fewest_with_databases(endpoint):
            return cls(pool, 0, FEWEST_IDLE, seats, spare=spare)
        left = share - 2 - pool
        least = FEWEST_DATABASES if share >= 4 + FEWEST_IN_POOL * FEWEST_DATABASES else 1
        databases = _between(least, left // (1 + FEWEST_IDLE), MOST_DATABASES)
        return cls(pool, databases, _between(FEWEST_IDLE, left // databases - 1, pool), seats)


def fewest_with_databases(endpoint: Endpoint) -> int:
    """How many connections a worker must have for isolation `database`.

    On a server of the plugin's own it is not the connection that builds which makes databases, but another one.
    """
    return FEWEST_WITH_DATABASES + endpoint.own


def fitting(endpoint: Endpoint, each: int = FEWEST_OF_A_WORKER) -> int:
    """The most workers that a server has room for, none of which has to wait for its turn; 1 at least."""
    return max((endpoint.max_connections - endpoint.reserved_connections) // each, 1)


def needed(endpoint: Endpoint, workers: int, each: int = FEWEST_OF_A_WORKER) -> int:
    """The least number of connections to be let in with which none of so many workers has to wait for its turn."""
    return each * max(workers, 1) + endpoint.reserved_connections


def room(endpoint: Endpoint) -> str:
    """How many connections are let in, and by what."""
    kind, _, name = endpoint.limited.partition(" ")
    if kind:
        return f"CONNECTION LIMIT of {kind.lower()} {name}: {endpoint.max_connections}"
    return f"max_connections: {endpoint.max_connections}, of which {endpoint.reserved_connections} are reserved"


def raised(endpoint: Endpoint, number: int) -> str:
    """What has so many let in."""
    if endpoint.limited:
        return f"ALTER {endpoint.limited} CONNECTION LIMIT {number}"
    return f"max_connections = {number}"


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(most, wanted))
