"""Has a session forget what an earlier test has left in it, when its connection is lent to the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from pytest_pgdbm.connections.parking.private import prepared
from pytest_pgdbm.ground.endpoint import Pooling

Clean: TypeAlias = Callable[[Any], Awaitable[bool]]
"""Cleans the session of a connection; False for one that has to be closed instead. Raises what the server says."""

# asyncpg's own reset, at each release, does the rest; neither it nor RESET ALL undoes these.
# Not DISCARD ALL: it takes the prepared statements that asyncpg has cached.
_CLEAN = "reset session authorization; discard temp; discard sequences"

# Nothing, unless statements were prepared by SQL, or some were deallocated that asyncpg would execute.
_STATEMENTS = (
    "select from pg_catalog.pg_prepared_statements"
    " having pg_catalog.bool_or(from_sql) or pg_catalog.count(*) < {prepared}"
)
_NOTHING = "SELECT 0"


def cleaner(pooling: Pooling) -> Clean:
    """What cleans the sessions of connections with this behind them.

    Behind a pooler of transactions the statements may be somebody else's.
    """
    return partial(_clean, looks=pooling != "transaction")


async def _clean(connection: Any, *, looks: bool) -> bool:
    if not looks:
        await connection.execute(_CLEAN)
        return True
    statements = _STATEMENTS.format(prepared=prepared(connection))
    return bool(await connection.execute(f"{_CLEAN}; {statements}") == _NOTHING)
