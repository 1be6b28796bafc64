"""Server connections that outlive their event loop.

A new connection costs a test several milliseconds: the login, and a server process whose caches are cold. asyncpg's
connections belong to the loop that made them, though, and most suites have a loop for each test. So when a loop ends,
the session is cleaned, and its socket is kept while its asyncpg connection goes. In the next loop asyncpg makes a
real, new `asyncpg.Connection`, and where it would open a socket it finds that one: its startup message is swallowed,
and it is told again what the server said when it logged in.

What this leans on is checked in each run before it is used: one connection is parked and revived, and asked who
serves it. Whatever is not as expected, then or later, ends it for the run, and connections are opened as ever.

What a parked session does not forget: settings of a role or a database changed meanwhile (ALTER ROLE … SET), a
custom setting that was once set (`app.tenant` reads '' instead of NULL), what an extension or a procedural language
keeps in the memory of the server process. A pool in production forgets none of it either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import asyncpg

SECONDS_TO_CLEAN = 2.0
"""How long a session may take to be cleaned, before it is closed instead."""

SECONDS_PARKED = 60.0
"""How long a session is kept for the next loop. A firewall forgets quiet connections; not as soon as this."""

SECONDS_OF_LIFE = 600.0
"""How old a session may become: its server process collects what it saw of the catalogs."""

TESTED = ((0, 30), (0, 32))
"""The oldest and the newest asyncpg with which the tests of this module have run. Others open connections as ever."""

# https://www.postgresql.org/docs/current/sql-discard.html. The statements that asyncpg has prepared go too, which is
# right here: the connection that knows them goes with its loop.
_CLEAN = "DISCARD ALL"

# https://www.postgresql.org/docs/current/protocol-message-formats.html
_AUTHENTICATION_OK = b"R" + struct.pack("!ii", 8, 0)
_READY = b"Z" + struct.pack("!i", 5) + b"I"
_TERMINATE = b"X" + struct.pack("!i", 4)

_SERVER_SAYS_NO = (OSError, asyncio.TimeoutError, asyncpg.PostgresError)

_log = logging.getLogger("pytest_pgdbm")


class ParkedConnections:
    """The server connections of pools with the same arguments, while no loop has them; at most `limit` of them.

    `adopt` is called with a new pool that has no connections yet, `park` before a pool is closed, in its loop, and
    `close` at the end of the run. Loops may run in several threads.
    """

    def __init__(self, limit: int) -> None:
        self._shelf = _Shelf(limit)
        self._arguments: tuple[Any, ...] | None = None
        self._proven: set[type] = set()
        self._without_tls: dict[str, Any] = {}
        # By their settings, which asyncpg keeps in one object for each connection: unlike the number of a server
        # process, which another host may use too. A wire lives as long as asyncpg's protocol, which has it for a loop.
        self._wires: weakref.WeakValueDictionary[int, _Wire] = weakref.WeakValueDictionary()
        self._off = False
        if why := _unsupported():
            self._give_up(why)

    @property
    def on(self) -> bool:
        """Whether connections are parked, as far as is known."""
        return not self._off

    def adopt(self, pool: asyncpg.Pool) -> None:
        """Has the pool take its connections from here. It must have no smallest size, and no connection yet."""
        if self.on:
            # asyncpg takes `connect` when a pool is created, and keeps it here; pgdbm creates pools without it.
            pool._connect = self.connect

    async def connect(self, *args: Any, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> asyncpg.Connection:
        """A connection, as `asyncpg.connect` with the same arguments; raises what that raises."""
        request = _Request(args, kwargs, loop)
        if not self.on or not self._same(request):
            return await request.connect(loop)
        try:
            if type(loop) not in self._proven:
                await self._prove(request)
            return await self._revived(request) or await self._made(request)
        except _SERVER_SAYS_NO:
            raise
        except Exception as surprise:
            self._give_up(str(surprise) or repr(surprise))
            return await request.connect(loop)

    async def park(self, pool: asyncpg.Pool) -> None:
        """Takes the connections that are not out from the pool, and keeps their sessions, cleaned.

        What is left must be closed by the caller, whether this fails or not.
        """
        # Pool.expire_connections() counts here: who calls it wants no session that has been.
        if not self.on or pool._generation:
            return
        taken: list[Any] = []
        try:
            while pool.get_idle_size():
                taken.append(await pool.acquire(timeout=SECONDS_TO_CLEAN))
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

    def close(self) -> None:
        """The same, for good: connections are opened and closed as ever from now on."""
        self._off = True
        self._shelf.close()

    def _same(self, request: _Request) -> bool:
        arguments = (request.args, request.kwargs)
        if self._arguments is None:
            self._arguments = arguments
        return self._arguments == arguments

    async def _made(self, request: _Request) -> asyncpg.Connection:
        wire = _Wire(request.loop, None)
        connection = await request.connect(wire, **self._without_tls)
        if wire.tls:
            connection.terminate()
            raise _Surprise("they are encrypted, and the state of the encryption cannot move")
        self._settle(wire, connection)
        return connection

    async def _revived(self, request: _Request) -> asyncpg.Connection | None:
        parked = self._shelf.take()
        return None if parked is None else await self._revive(request, parked)

    async def _revive(self, request: _Request, parked: _Parked) -> asyncpg.Connection:
        wire = _Wire(request.loop, parked)
        try:
            connection = await request.connect(wire, **self._without_tls)
        except Exception as error:
            raise _Surprise(f"a parked connection could not be revived: {error!r}") from error
        finally:
            if not wire.attached:
                parked.end()
        self._settle(wire, connection)
        return connection

    def _settle(self, wire: _Wire, connection: asyncpg.Connection) -> None:
        if wire.settle(connection):
            self._wires[id(wire.settings)] = wire

    def _wire_of(self, connection: Any) -> _Wire | None:
        return self._wires.get(id(connection.get_settings()))

    async def _park(self, connection: Any) -> None:
        # However this fails, the caller closes the connection.
        with contextlib.suppress(*_SERVER_SAYS_NO, asyncpg.InterfaceError):
            parked = await self._detached(connection)
            if parked is not None:
                self._shelf.put(parked)

    async def _detached(self, connection: Any) -> _Parked | None:
        wire = self._wire_of(connection)
        if wire is None:
            return None
        await connection.execute(_CLEAN, timeout=SECONDS_TO_CLEAN)
        return wire.cut()

    async def _prove(self, request: _Request) -> None:
        connection = await self._recorded(request)
        try:
            connection = await self._moved(request, connection)
            pid = await connection.fetchval("select pg_catalog.pg_backend_pid()")
            if pid != connection.get_server_pid():
                raise _Surprise("a revived connection is served by another process than it was told")
            await self._park(connection)
        except (*_SERVER_SAYS_NO, asyncpg.InterfaceError) as error:
            raise _Surprise(f"a connection did not survive to be parked and revived: {error!r}") from error
        finally:
            await asyncio.sleep(0)
            _end(connection)
        self._proven.add(type(request.loop))

    async def _recorded(self, request: _Request) -> asyncpg.Connection:
        connection = await self._made(request)
        if self._wire_of(connection) is not None:
            return connection
        # By default asyncpg asks the server for encryption first, and the login is out of sight then. This server has
        # none, so it need not be asked again.
        await connection.close()
        self._without_tls = {"ssl": False}
        return await self._made(request)

    async def _moved(self, request: _Request, connection: asyncpg.Connection) -> asyncpg.Connection:
        parked = await self._detached(connection)
        if parked is None:
            raise _Surprise("a connection could not be parked")
        return await self._revive(request, parked)

    def _give_up(self, why: str) -> None:
        if not self._off:
            _log.debug("server connections end with their event loop in this run: %s", why)
        self.close()


class _Surprise(Exception):
    """Something is not as this module expects it."""


class _Request(NamedTuple):
    """What a pool asks of `asyncpg.connect`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loop: asyncio.AbstractEventLoop

    def connect(self, loop: Any, **more: Any) -> Awaitable[asyncpg.Connection]:
        """Connects in this loop, or in what passes for one."""
        connecting: Awaitable[asyncpg.Connection] = asyncpg.connect(*self.args, loop=loop, **{**self.kwargs, **more})
        return connecting


class _Wire:
    """An event loop for asyncpg in which connecting finds a parked socket, or is recorded.

    asyncpg's protocol keeps it as its loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, parked: _Parked | None) -> None:
        self.tls = False
        self.settings: Any = None
        self._loop = loop
        self._parked = parked
        self._born = parked.born if parked else time.monotonic()
        self._lines: list[_Line] = []
        self._login: _Login | None = None
        self._transport: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property
    def attached(self) -> bool:
        """Whether a transport has taken the parked socket over."""
        return any(line.transport is not None for line in self._lines)

    async def create_connection(self, factory: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.tls = self.tls or "ssl" in kwargs
        return await self._connected(self._loop.create_connection, factory, args, kwargs)

    async def create_unix_connection(self, factory: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return await self._connected(self._loop.create_unix_connection, factory, args, kwargs)

    async def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        self.tls = True
        return await self._loop.start_tls(*args, **kwargs)

    def settle(self, connection: Any) -> bool:
        """Steps aside, the connection being made; returns whether enough is known of it to park it."""
        lines, self._lines, self._parked = self._lines, [], None
        # asyncpg cancels a statement by another connection, which it opens in this loop by a task of this loop.
        connection._loop = self._loop
        pid = connection.get_server_pid()
        for line in lines:  # one for each host that was tried
            if line.login is not None and line.login.pid == pid:
                line.transport.set_protocol(line.protocol)
                self._login, self._transport = line.login, line.transport
                self.settings = connection.get_settings()
        return self._login is not None

    def cut(self) -> _Parked:
        """Keeps the socket of a connection that waits for nothing, and ends its transport."""
        transport, login = self._transport, self._login
        assert login is not None
        kept = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        kept.setblocking(False)
        # Before asyncpg ends its connection: the Terminate message that it writes then is dropped.
        transport.abort()
        replay = login.again(self.settings)
        return _Parked(kept, login, replay, self._born, time.monotonic(), os.getpid())

    async def _connected(
        self, connect: Callable[..., Awaitable[tuple[Any, Any]]], factory: Any, args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        parked = self._parked
        if parked is not None and parked.login.address != args:
            raise ConnectionRefusedError("the parked connection is to another host")
        line = _Line(factory(), args, parked)
        self._lines.append(line)
        if parked is None:
            await connect(lambda: line, *args, **kwargs)
        else:
            await connect(lambda: line, sock=parked.socket)
        return line.transport, line.protocol


class _Line(asyncio.Protocol):
    """Between the transport and asyncpg's protocol while it logs in: records, or replays what was recorded."""

    def __init__(self, protocol: Any, address: tuple[Any, ...], parked: _Parked | None) -> None:
        self.protocol = protocol
        self.transport: Any = None
        self.login = parked.login if parked else None
        self._address = address
        self._replay = parked.replay if parked else b""
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.protocol.connection_made(_Tap(transport) if self._replay else transport)
        if self._replay:
            self.protocol.data_received(self._replay)

    def data_received(self, data: bytes) -> None:
        if self.login is None:
            self._heard += data
            self.login = _Login.heard(self._heard, self._address)
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        ended: bool | None = self.protocol.eof_received()
        return ended

    def connection_lost(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()


class _Tap:
    """The transport of a revived connection for asyncpg: swallows the startup message, and passes on the rest."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.write = self._swallow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _swallow(self, _: Any) -> None:
        self.write = self._transport.write


class _Login(NamedTuple):
    """What the server told at the login: the names of the settings that it reports, and the key for cancelling.

    `address` is where asyncpg went for it.
    """

    address: tuple[Any, ...]
    names: tuple[str, ...]
    key: bytes

    @classmethod
    def heard(cls, data: bytes, address: tuple[Any, ...]) -> _Login | None:
        """From what the server sent; None if that is not, or not yet, a whole login."""
        names, key = [], b""
        for message in _messages(data):
            if message.startswith(b"S"):
                names.append(message[5:].partition(b"\0")[0].decode())
            elif message.startswith(b"K"):
                key = message
            elif message.startswith(b"Z"):
                return cls(address, tuple(names), key) if key else None
        return None

    @property
    def pid(self) -> int:
        """The number of the server process."""
        number: int = struct.unpack_from("!i", self.key, 5)[0]
        return number

    def again(self, settings: Any) -> bytes:
        """A login that succeeds at once, with the settings as they are now."""
        reported = (_parameter(name, getattr(settings, name)) for name in self.names)
        return b"".join([_AUTHENTICATION_OK, *reported, self.key, _READY])


class _Parked(NamedTuple):
    """The socket of a session that nobody uses; the times are of the monotonic clock."""

    socket: socket.socket
    login: _Login
    replay: bytes
    born: float
    since: float
    process: int

    def is_fit(self) -> bool:
        """Whether it can be revived: young enough, ours, and with nothing to be read: no farewell of the server."""
        now = time.monotonic()
        young = now < self.since + SECONDS_PARKED and now < self.born + SECONDS_OF_LIFE
        return young and self._is_ours() and self._is_quiet()

    def end(self) -> None:
        """Ends the session. A forked process only lets go of it."""
        if self._is_ours():
            with contextlib.suppress(OSError):
                self.socket.send(_TERMINATE)
        self.socket.close()

    def _is_ours(self) -> bool:
        return self.process == os.getpid()

    def _is_quiet(self) -> bool:
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class _Shelf:
    """The parked sessions, the last one first; for any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parked: list[_Parked] = []
        self._lock = threading.Lock()

    def put(self, parked: _Parked) -> None:
        """Keeps it; or ends it, if there is no room."""
        with self._lock:
            room = len(self._parked) < self._limit
            if room:
                self._parked.append(parked)
        if not room:
            parked.end()

    def take(self) -> _Parked | None:
        """One that is fit; those on the way that are not are ended."""
        while (parked := self._pop()) is not None:
            if parked.is_fit():
                return parked
            parked.end()
        return None

    def clear(self) -> None:
        """Ends all of them."""
        while (parked := self._pop()) is not None:
            parked.end()

    def close(self) -> None:
        """The same, and there is no room for any from now on."""
        self._limit = 0
        self.clear()

    def _pop(self) -> _Parked | None:
        with self._lock:
            return self._parked.pop() if self._parked else None


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 5 <= len(data):
        end = at + 1 + struct.unpack_from("!i", data, at + 1)[0]
        yield data[at:end]
        at = end


def _parameter(name: str, value: str) -> bytes:
    body = f"{name}\0{value}\0".encode()
    return b"S" + struct.pack("!i", 4 + len(body)) + body


def _end(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # it left the pool by itself
        if not connection.is_closed():
            connection.terminate()


def _unsupported() -> str:
    if sys.platform == "win32":
        return "a socket does not survive the end of its transport on Windows"
    version = tuple(int(number) for number in asyncpg.__version__.split(".")[:2])
    if not TESTED[0] <= version <= TESTED[1]:
        return f"asyncpg {asyncpg.__version__} is not one that this was tested with"
    return ""
