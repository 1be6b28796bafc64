"""The doctor's own transaction at a URL: nothing can be written in it, and it has the settings that any other has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pytest_pgdbm.connections.login import SECONDS_TO_CONNECT, dsn
from pytest_pgdbm.ground.endpoint import Endpoint

APPLICATION = "pgdbm doctor"

_BOUNDED = "set local lock_timeout = '1s'"


@asynccontextmanager
async def visiting(endpoint: Endpoint) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that the server keeps from writing, and that waits a second for a lock at most."""
    connection = await asyncpg.connect(
        dsn(endpoint, endpoint.database, endpoint.admin),
        timeout=SECONDS_TO_CONNECT,
        statement_cache_size=0,  # a pooler may be between, whose sessions others use afterwards
        server_settings={"application_name": APPLICATION},
    )
    try:
        async with connection.transaction(readonly=True):
            await connection.execute(_BOUNDED)
            yield connection
    finally:
        await connection.close()
