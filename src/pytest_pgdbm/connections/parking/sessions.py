"""Parks the connections of a pool that ends, and revives them for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable
from typing import Any, NamedTuple

import asyncpg

from pytest_pgdbm.connections.parking import private
from pytest_pgdbm.connections.parking.shelf import Parked, Shelf
from pytest_pgdbm.connections.parking.wire import Wire
from pytest_pgdbm.ground.masks import masked

SECONDS_TO_CLEAN = 1.0
"""How long a session may take to be cleaned, before it is closed instead."""

# https://www.postgresql.org/docs/current/sql-discard.html. The statements that asyncpg has prepared go too, which is
# right here: the connection that knows them goes with its loop.
_CLEAN = "DISCARD ALL"

_SERVER_SAYS_NO = (OSError, asyncio.TimeoutError, asyncpg.PostgresError)


class ParkedConnections:
    """The server connections of pools with the same arguments, while no loop has them; at most `limit` of them.

    `adopt` is called with a new pool, `park` before a pool is closed, in its loop, and `close` at the end of the run.
    Loops may run in several threads.
    """

    def __init__(self, limit: int) -> None:
        self.off_because = private.unsupported()
        self._shelf = Shelf(limit)
        self._arguments: tuple[Any, ...] | None = None
        self._proven: set[type] = set()
        self._without_tls: dict[str, Any] = {}
        # By their settings, which asyncpg keeps in one object for each connection: unlike the number of a server
        # process, which another host may use too. A wire lives as long as asyncpg's protocol, which has it for a loop.
        self._wires: weakref.WeakValueDictionary[int, Wire] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        """How many are parked."""
        return len(self._shelf)

    def adopt(self, pool: asyncpg.Pool) -> None:
        """Has the pool take its connections from here; those that it has already end with it."""
        if not self.off_because:
            private.connect_by(pool, self._connect)

    async def park(self, pool: asyncpg.Pool) -> None:
        """Takes the connections that are not out from the pool, and keeps their sessions, cleaned.

        What is left must be closed by the caller, whether this fails or not. How long it may take is for the caller to
        say, too.
        """
        # Who expires connections wants no session that has been.
        if self.off_because or private.was_expired(pool):
            return
        taken: list[Any] = []
        try:
            while pool.get_idle_size():
                taken.append(await pool.acquire())
            for connection in taken:
                await self._park(connection)
        finally:
            # A connection whose socket is kept learns of its end in the next turn of the loop, and leaves the pool.
            await asyncio.sleep(0)
            for connection in taken:
                _end(connection)

    def forget(self) -> None:
        """Ends the sessions that are parked: the next loop opens new ones."""
        self._shelf.clear()

    def close(self, why: str = "the run is over") -> None:
        """The same, for good: connections are opened and closed as ever from now on. The first reason stays."""
        self.off_because = self.off_because or why
        self._shelf.close()

    async def _connect(
        self, connect: private.Connect, *args: Any, loop: asyncio.AbstractEventLoop, **kwargs: Any
    ) -> asyncpg.Connection:
        request = _Request(connect, args, kwargs, loop)
        if self.off_because or not self._same(request):
            return await request.connect(loop)
        try:
            if type(loop) not in self._proven:
                await self._prove(request)
            return await self._revived(request) or await self._made(request)
        except _SERVER_SAYS_NO:
            raise
        except Exception as surprise:
            self.close(masked(str(surprise) or repr(surprise)))
            return await request.connect(loop)

    def _same(self, request: _Request) -> bool:
        arguments = (request.connector, request.args, request.kwargs)
        if self._arguments is None:
            self._arguments = arguments
        return self._arguments == arguments

    async def _made(self, request: _Request) -> asyncpg.Connection:
        wire = Wire(request.loop, None)
        connection = await request.connect(wire, **self._without_tls)
        if wire.tls:
            connection.terminate()
            raise _Surprise("they are encrypted, and the state of the encryption cannot move")
        self._settle(wire, connection)
        return connection

    async def _revived(self, request: _Request) -> asyncpg.Connection | None:
        while (parked := self._shelf.take()) is not None:
            with contextlib.suppress(*_SERVER_SAYS_NO):  # its server process has just ended
                return await self._revive(request, parked)
        return None

    async def _revive(self, request: _Request, parked: Parked) -> asyncpg.Connection:
        wire = Wire(request.loop, parked)
        try:
            connection = await request.connect(wire, **self._without_tls)
        finally:
            if not wire.attached:
                parked.end()
        self._settle(wire, connection)
        return connection

    def _settle(self, wire: Wire, connection: asyncpg.Connection) -> None:
        if wire.settle(connection):
            self._wires[id(wire.settings)] = wire

    def _wire_of(self, connection: Any) -> Wire | None:
        return self._wires.get(id(connection.get_settings()))

    async def _park(self, connection: Any) -> None:
        # However this fails, the caller closes the connection.
        with contextlib.suppress(*_SERVER_SAYS_NO, asyncpg.InterfaceError):
            parked = await self._detached(connection)
            if parked is not None:
                self._shelf.put(parked)

    async def _detached(self, connection: Any) -> Parked | None:
        wire = self._wire_of(connection)
        if wire is None:
            return None
        await connection.execute(_CLEAN, timeout=SECONDS_TO_CLEAN)
        return wire.cut()

    async def _prove(self, request: _Request) -> None:
        parked = self._shelf.take()
        connection = None if parked else await self._recorded(request)
        try:
            parked = parked or await self._first(connection)
            await self._try(await self._revive(request, parked))
        except _Surprise:
            raise
        except Exception as error:
            raise _Surprise(f"a connection could not be parked and revived: {error!r}") from error
        self._proven.add(type(request.loop))

    async def _try(self, connection: asyncpg.Connection) -> None:
        try:
            if await connection.fetchval("select pg_catalog.pg_backend_pid()") != connection.get_server_pid():
                raise _Surprise("a revived connection is served by another process than it was told")
            await self._park(connection)
            await asyncio.sleep(0)
        finally:
            _end(connection)

    async def _first(self, connection: Any) -> Parked:
        parked = None
        try:
            parked = await self._detached(connection)
            if parked is None:
                raise _Surprise("a connection could not be parked")
            await asyncio.sleep(0)  # it learns of its end
        except BaseException:
            if parked is not None:
                parked.end()
            raise
        finally:
            _end(connection)
        return parked

    async def _recorded(self, request: _Request) -> asyncpg.Connection:
        connection = await self._made(request)
        if self._wire_of(connection) is not None:
            return connection
        # By default asyncpg asks the server for encryption first, and the login is out of sight then. This server has
        # none, so it need not be asked again.
        await connection.close()
        self._without_tls = {"ssl": False}
        return await self._made(request)


class _Surprise(Exception):
    """Something is not as this package expects it."""


class _Request(NamedTuple):
    """What a pool asks for."""

    connector: private.Connect
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loop: asyncio.AbstractEventLoop

    def connect(self, loop: Any, **more: Any) -> Awaitable[asyncpg.Connection]:
        """Connects in this loop, or in what passes for one."""
        return self.connector(*self.args, loop=loop, **{**self.kwargs, **more})


def _end(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # it left the pool by itself
        if not connection.is_closed():
            connection.terminate()
