"""What `pool.acquire()` returns before there is a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any

from pytest_pgdbm.connections.places import Place, caller

Take = Callable[[float | None, object | None, Place], Coroutine[Any, Any, Any]]
Release = Callable[[Any], Awaitable[None]]


class Acquiring:
    """What `acquire()` returns: awaitable, and an asynchronous context manager, as asyncpg's own."""

    __slots__ = ("_connection", "_owner", "_place", "_release", "_take", "_timeout")

    def __init__(self, take: Take, release: Release, timeout: float | None, owner: object | None) -> None:
        self._take = take
        self._release = release
        self._timeout = timeout
        self._owner = owner
        self._place = caller()
        self._connection: Any = None

    async def __aenter__(self) -> Any:
        """Takes a connection."""
        self._connection = await self._take(self._timeout, self._owner, self._place)
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives it back."""
        connection, self._connection = self._connection, None
        await self._release(connection)

    def __await__(self) -> Generator[Any, None, Any]:
        """Takes a connection, which its user gives back."""
        return self._take(self._timeout, self._owner, self._place).__await__()
