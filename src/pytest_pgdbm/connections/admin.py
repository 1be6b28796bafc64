"""The one connection of this process that builds and drops, in the private loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pytest_pgdbm.connections import login
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.ground.records import Endpoint

# Not DISCARD ALL: it takes asyncpg's prepared statements too.
_CLEAN = """
reset session authorization; reset role; reset all; close all; unlisten *; discard temp; discard sequences;
select pg_catalog.pg_advisory_unlock_all()
"""


class Admin:
    """Lends its connection to one piece of work at a time; opened at the first use, and anew if it was lost."""

    def __init__(self, endpoint: Endpoint, database: str, *, application_name: str, path: str | None) -> None:
        self._endpoint = endpoint
        self._database = database
        self._application_name = application_name
        self._settings = {} if path is None else {"search_path": path}
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection, as the role that administers: a superuser on servers of our own."""
        async with self._turn:
            yield await self._opened()

    @asynccontextmanager
    async def tester(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection, as the role of tests and migrations, whose session state is cleaned afterwards."""
        async with self._turn:
            connection = await self._opened()
            if self._endpoint.login != self._endpoint.admin:
                role = quote_ident(self._endpoint.login.user)
                await connection.execute(f"set session authorization {role}")
            try:
                yield connection
            except BaseException:
                await self._clean(connection, failed=True)
                raise
            await self._clean(connection, failed=False)

    async def close(self) -> None:
        """Closes the connection; nothing happens the second time."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await connection.close()

    async def _opened(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await login.connect(
                self._endpoint,
                self._database,
                self._endpoint.admin,
                application_name=self._application_name,
                settings=self._settings,
            )
        return self._connection

    async def _clean(self, connection: asyncpg.Connection, *, failed: bool) -> None:
        """Takes away what a migration may have left in the session; a connection that does not let it goes itself."""
        try:
            # What was cancelled may have begun a transaction that asyncpg does not know of yet.
            if failed or connection.is_in_transaction():
                await connection.execute("rollback")
            await connection.execute(_CLEAN)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise
