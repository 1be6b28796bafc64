"""The doctor's own session at a URL: one in which nothing can be written, with the settings that any other has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pytest_pgdbm.connections.login import SECONDS_TO_CONNECT, dsn
from pytest_pgdbm.ground.endpoint import Endpoint

APPLICATION = "pgdbm doctor"

_READ_ONLY = "set default_transaction_read_only = on; set lock_timeout = '1s'"


@asynccontextmanager
async def visiting(endpoint: Endpoint) -> AsyncIterator[asyncpg.Connection]:
    """A session that the server itself keeps from writing, and that waits for no lock longer than a second."""
    connection = await asyncpg.connect(
        dsn(endpoint, endpoint.database, endpoint.admin),
        timeout=SECONDS_TO_CONNECT,
        server_settings={"application_name": APPLICATION},
    )
    try:
        await connection.execute(_READ_ONLY)
        yield connection
    finally:
        await connection.close()
