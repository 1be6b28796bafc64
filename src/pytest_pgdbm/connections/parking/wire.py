"""What stands between asyncpg and its event loop while it connects: records a login, or replays one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pytest_pgdbm.connections.parking import private
from pytest_pgdbm.connections.parking.login import Login
from pytest_pgdbm.connections.parking.shelf import Parked


class Wire:
    """An event loop for asyncpg in which connecting finds a parked socket, or is recorded.

    asyncpg's protocol keeps it as its loop. `tls` is whether encryption was asked for and not refused, `settings`
    what the connection knows of the server's settings.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, parked: Parked | None) -> None:
        self.tls = False
        self.settings: Any = None
        self._loop = loop
        self._parked = parked
        self._born = parked.born if parked else time.monotonic()
        self._lines: list[_Line] = []
        self._login: Login | None = None
        self._transport: Any = None

    def __getattr__(self, name: str) -> Any:
        """The rest is the loop's."""
        return getattr(self._loop, name)

    @property
    def attached(self) -> bool:
        """Whether a transport has taken the parked socket over."""
        return any(line.transport is not None for line in self._lines)

    async def create_connection(self, factory: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As the loop's."""
        self.tls = self.tls or "ssl" in kwargs
        return await self._connected(self._loop.create_connection, factory, args, kwargs)

    async def create_unix_connection(self, factory: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As the loop's."""
        return await self._connected(self._loop.create_unix_connection, factory, args, kwargs)

    async def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        """As the loop's."""
        self.tls = True
        return await self._loop.start_tls(*args, **kwargs)

    def settle(self, connection: Any) -> bool:
        """Steps aside, the connection being made; returns whether enough is known of it to park it."""
        lines, self._lines, self._parked = self._lines, [], None
        private.belongs_to(connection, self._loop)
        pid = connection.get_server_pid()
        for line in lines:  # one for each host that was tried
            if line.login is not None and line.login.pid == pid:
                line.transport.set_protocol(line.protocol)
                self._login, self._transport = line.login, line.transport
                self.settings = connection.get_settings()
        return self._login is not None

    def cut(self) -> Parked:
        """Keeps the socket of a connection that waits for nothing, and ends its transport."""
        login = self._login
        assert login is not None
        parked = Parked.from_transport(self._transport, login, login.again(self.settings), self._born)
        # Before asyncpg ends its connection: the Terminate message that it writes then is dropped.
        self._transport.abort()
        return parked

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

    def __init__(self, protocol: Any, address: tuple[Any, ...], parked: Parked | None) -> None:
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
            self.login = Login.heard(self._heard, self._address)
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
