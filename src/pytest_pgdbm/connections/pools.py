"""The pool that is one object for its users and one real asyncpg pool in each event loop.

asyncpg's connections belong to the loop that made them. A session-scoped application holds one pool object, though,
while tests run in loops of any scope, in a `TestClient`'s thread, in `asyncio.run`. So each call is handed to the
running loop's real pool, which is made at the first use there and closed when that loop shuts down.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import asyncpg

from pytest_pgdbm.connections.quiet import quietly

SECONDS_TO_CLOSE = 1.0
"""How long a loop that ends waits for its connections to be given back, before they are cut off."""

OpenPool = Callable[[], Awaitable[asyncpg.Pool]]

_PACKAGE = str(Path(__file__).parent.parent)
_PASSED_BY = (_PACKAGE, str(Path(asyncpg.__file__).parent), contextlib.__file__)


@dataclass(frozen=True)
class Checkout:
    """A connection that is out: the server process that serves it, who took it and where."""

    pid: int
    place: str
    owner: object | None
    pool: asyncpg.Pool = field(repr=False)
    connection: object = field(repr=False)


class SharedPool(asyncpg.Pool):  # type: ignore[misc]  # asyncpg has no types
    """An `asyncpg.Pool` that hands each call to the running event loop's real pool.

    `close()` ends the connections of the running loop only, and the next use opens new ones: the tests of an
    application that closes its pool at shutdown go on.
    """

    __slots__ = ("__weakref__", "_lock", "_loops", "_lost", "_open", "_out", "_sizes")

    def __init__(self, open_pool: OpenPool, *, min_size: int, max_size: int) -> None:
        # Not asyncpg's own __init__: it would bind this object to one loop. Everything public is overridden here.
        self._open = open_pool
        self._sizes = (min_size, max_size)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPool] = (
            weakref.WeakKeyDictionary()
        )
        self._out: dict[int, Checkout] = {}
        self._lost: list[Checkout] = []
        self._lock = threading.Lock()

    def acquire(self, *, timeout: float | None = None) -> Any:
        """A connection of the running loop's pool; to be awaited, or entered by `async with`."""
        return _Acquire(self, timeout, None)

    def acquire_for(self, owner: object) -> Any:
        """As `acquire`, and remembers the owner while the connection is out."""
        return _Acquire(self, None, owner)

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Gives a connection back to the pool that it came from."""
        with self._lock:
            checkout = self._out.pop(id(connection), None)
        pool = checkout.pool if checkout else await self._mine()
        await pool.release(connection, timeout=timeout)

    @property
    def lost(self) -> bool:
        """Whether a loop ended with connections out since `take_lost` was called last."""
        return bool(self._lost)

    def take_lost(self, owners: Collection[object]) -> list[Checkout]:
        """Connections that will not come back: cut off with their loop, or out for an owner that has ended."""
        with self._lock:
            lost, self._lost = self._lost, []
            lost += [checkout for checkout in self._out.values() if checkout.owner in owners]
            for checkout in lost:
                self._out.pop(id(checkout.connection), None)
        return lost

    def _loop_ended(self, pool: asyncpg.Pool) -> None:
        with self._lock:
            lost = [key for key, checkout in self._out.items() if checkout.pool is pool]
            self._lost += [self._out.pop(key) for key in lost]

    async def close(self) -> None:
        """Closes the running loop's connections once they are given back; a second later, without waiting."""
        loop_pool = self._running()
        if loop_pool is not None:
            await loop_pool.end()

    def terminate(self) -> None:
        """Cuts the running loop's connections off."""
        loop_pool = self._running()
        if loop_pool is not None and loop_pool.pool is not None:
            loop_pool.pool.terminate()

    async def expire_connections(self) -> None:
        """Has the running loop's connections replaced as they come back."""
        await (await self._mine()).expire_connections()

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Refused: this pool is the plugin's, on the run's server."""
        raise asyncpg.InterfaceError("the pool of pytest-pgdbm cannot be sent to another server")

    def is_closing(self) -> bool:
        """Always false: the next use opens the pool anew."""
        return False

    def get_size(self) -> int:
        """The number of connections in the running loop."""
        pool = self._opened()
        return pool.get_size() if pool else 0

    def get_idle_size(self) -> int:
        """The number of connections in the running loop that are not out."""
        pool = self._opened()
        return pool.get_idle_size() if pool else 0

    def get_min_size(self) -> int:
        """The number of connections that each loop's pool keeps open."""
        return self._sizes[0]

    get_init_size = get_min_size

    def get_max_size(self) -> int:
        """The most connections that one loop can have."""
        return self._sizes[1]

    def __await__(self) -> Generator[Any, None, SharedPool]:
        """Opens the running loop's pool; the result is this object."""
        yield from self._mine().__await__()
        return self

    async def __aenter__(self) -> SharedPool:
        """Opens the running loop's pool."""
        await self._mine()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes the running loop's connections."""
        await self.close()

    def __repr__(self) -> str:
        """How many loops have a pool now."""
        return f"<pytest-pgdbm pool, open in {len(self._loops)} loops>"

    def _running(self) -> _LoopPool | None:
        try:
            return self._loops.get(asyncio.get_running_loop())
        except RuntimeError:
            return None

    def _opened(self) -> asyncpg.Pool | None:
        loop_pool = self._running()
        return loop_pool.pool if loop_pool else None

    async def _mine(self) -> asyncpg.Pool:
        loop = running_loop()
        loop_pool = self._loops.get(loop)
        if loop_pool is None:
            with self._lock:
                loop_pool = self._loops.setdefault(loop, _LoopPool(self._open, self._loop_ended))
        return loop_pool.pool or await loop_pool.begin()

    async def _take(self, timeout: float | None, owner: object | None) -> Any:
        place = _caller()
        pool = await self._mine()
        connection = await pool.acquire(timeout=timeout)
        checkout = Checkout(connection.get_server_pid(), place, owner, pool, connection)
        with self._lock:
            self._out[id(connection)] = checkout
        return connection


class _LoopPool:
    """The real pool of one loop."""

    def __init__(self, open_pool: OpenPool, ended: Callable[[asyncpg.Pool], None]) -> None:
        self.pool: asyncpg.Pool | None = None
        self._open = open_pool
        self._ended = ended
        self._holder: AsyncGenerator[asyncpg.Pool, None] | None = None
        self._opening = asyncio.Lock()

    async def begin(self) -> asyncpg.Pool:
        async with self._opening:
            if self.pool is None:
                self._holder = self._hold()
                self.pool = await self._holder.__anext__()
            return self.pool

    async def end(self) -> None:
        if self._holder is not None:
            await self._holder.aclose()

    async def _hold(self) -> AsyncGenerator[asyncpg.Pool, None]:
        # A generator that was started in a loop is finalised by loop.shutdown_asyncgens(), which asyncio.run,
        # asyncio.Runner, pytest-asyncio, anyio and Starlette's portal all call: so the pool ends with its loop.
        with quietly():
            pool = await self._open()
        try:
            yield pool
        finally:
            self.pool = None
            await _close(pool)
            self._ended(pool)


async def _close(pool: asyncpg.Pool) -> None:
    if pool.get_idle_size() < pool.get_size():
        # pool.close() would wait for a connection that is out; for ever, if its task is gone.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(pool.close(), SECONDS_TO_CLOSE)
    else:
        await pool.close()


class _Acquire:
    """What `acquire()` returns: awaitable, and an asynchronous context manager, as asyncpg's own."""

    __slots__ = ("_connection", "_owner", "_pool", "_timeout")

    def __init__(self, pool: SharedPool, timeout: float | None, owner: object | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._owner = owner
        self._connection: Any = None

    async def __aenter__(self) -> Any:
        self._connection = await self._pool._take(self._timeout, self._owner)
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        await self._pool.release(connection)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._pool._take(self._timeout, self._owner).__await__()


def running_loop() -> asyncio.AbstractEventLoop:
    """The running asyncio loop.

    Raises RuntimeError where there is none: outside of any loop, and under trio, which asyncpg does not know.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "pgdbm and asyncpg need a running asyncio event loop, and there is none here. Under anyio, choose the "
            "asyncio backend (trio cannot be used); in a synchronous test, go through the application, or asyncio.run()"
        ) from None


def _caller() -> str:
    """Where in the user's code the connection is being taken, as `file:line`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _passes_by(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "unknown"


def _passes_by(filename: str) -> bool:
    return filename.startswith(_PASSED_BY) or "/pgdbm/" in filename.replace("\\", "/")
