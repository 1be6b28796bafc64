"""The real pool of one event loop, which ends with its loop; its server connections can be parked for the next."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.parking import ParkedConnections
from pytest_pgdbm.connections.quiet import quietly

SECONDS_TO_DRAIN = 5.0
"""How long `close()` waits for connections that are out, before it cuts them off."""

SECONDS_TO_CLOSE = 2.0
"""How long connections that nobody uses may take to be closed, before they are cut off."""

OpenPool = Callable[[], Awaitable[asyncpg.Pool]]
CutOff = Callable[[asyncpg.Pool], Awaitable[None]]

# asyncpg's own reset, at each release, does the rest; neither it nor RESET ALL undoes these.
# Not DISCARD ALL: it takes the prepared statements that asyncpg has cached.
_CLEAN = "reset session authorization; discard temp; discard sequences"


class LoopPool:
    """The pool of one loop: made at the first use, closed by `end`, made anew at the next use.

    `min_size` connections are opened with it. Those that nobody uses at its end go to `parked`; with a pool that has
    others out then `cut_off` is called. `ended` is called when the loop is closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        open_pool: OpenPool,
        parked: ParkedConnections,
        *,
        min_size: int,
        cut_off: CutOff,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.pool: asyncpg.Pool | None = None
        self._open = open_pool
        self._parked = parked
        self._min_size = min_size
        self._cut_off = cut_off
        self._opening = asyncio.Lock()
        self._cleaned: dict[int, int] = {}
        self._ended = ended
        self._closing = _Closing.of(loop)
        self._closing.pools.add(self)

    async def begin(self) -> asyncpg.Pool:
        """The pool; to be called in its loop."""
        async with self._opening:
            if self.pool is None:
                with quietly():
                    self.pool = await self._begun()
            return self.pool

    async def end(self, patience: float = SECONDS_TO_DRAIN) -> None:
        """Closes the pool once all connections are given back; after `patience` seconds, without waiting."""
        pool, self.pool = self.pool, None
        if pool is None:
            return
        drained = await _drained(pool, patience)
        # However this fails, the connections are cut off then.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._close(pool, drained), SECONDS_TO_CLOSE)
        if not drained:
            await self._cut_off(pool)
        pool.terminate()
        # What was cut off lets go of its socket in the next turn of the loop.
        await asyncio.sleep(0)

    def end_now(self) -> None:
        """The same from outside of the loop, without patience, whether the loop runs in another thread or nowhere."""
        if self.pool is None or self.loop.is_closed():
            return
        if self.loop.is_running():
            ending = asyncio.run_coroutine_threadsafe(self.end(0), self.loop)
            concurrent.futures.wait([ending], timeout=2 * SECONDS_TO_CLOSE)
        else:
            _run(self.loop, self.end(0))

    async def _begun(self) -> asyncpg.Pool:
        pool = await self._open()
        self._parked.adopt(pool)
        try:
            await _fill(pool, self._min_size)
        except BaseException:
            pool.terminate()
            raise
        return pool

    async def _close(self, pool: asyncpg.Pool, drained: bool) -> None:
        await self._parked.park(pool)
        if drained and pool.get_size():
            await pool.close()

    def give_up(self) -> None:
        """Cuts off the connections, for good; to be called in its loop."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.terminate()
        self.forget()

    def forget(self) -> None:
        """Says that it has ended."""
        self._closing.pools.discard(self)
        self._ended()

    async def acquire(self, timeout: float | None, test: int) -> tuple[asyncpg.Pool, Any, int]:
        """A connection without session state of an earlier test, its pool and its server process.

        `test` counts the tests. Within one, a connection is as its last user left it, as in production.
        """
        while True:
            try:
                pool = self.pool or await self.begin()
                connection = await pool.acquire(timeout=timeout)
            except Exception as error:
                # asyncpg's frames have the password among their arguments, and pytest prints those.
                raise error.with_traceback(None) from None
            pid = connection.get_server_pid()
            # A process that is not known has just begun.
            if self._cleaned.setdefault(pid, test) == test or await _clean(connection):
                self._cleaned[pid] = test
                return pool, connection, pid


async def _clean(connection: Any) -> bool:
    # A connection that does not survive this died in an earlier test; closed, it goes back to its pool by itself.
    try:
        await connection.execute(_CLEAN)
    except FAILURES:
        terminate(connection)
        return False
    except BaseException:
        terminate(connection)
        raise
    return True


def terminate(connection: Any) -> None:
    """Closes a pool's connection without asking it; its place in the pool is free then."""
    with contextlib.suppress(asyncpg.InterfaceError):  # it was given back, or its server process died
        connection.terminate()


def is_closed(connection: Any) -> bool:
    """Whether a pool's connection was closed or given back."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


async def _fill(pool: asyncpg.Pool, size: int) -> None:
    # asyncpg would open these before the pool can find what is parked.
    if pool.get_size() < size:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(size):
                await stack.enter_async_context(pool.acquire())


async def _drained(pool: asyncpg.Pool, patience: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while pool.get_idle_size() < pool.get_size():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(0.01)
    return True


class _Closing:
    """Stands for the `close` of a loop: before it, the pools that live in the loop end."""

    # Every loop that ends is closed, be it by asyncio.run, a Runner of pytest-asyncio or anyio, Starlette's portal or
    # a fixture with a plain loop, and by then nothing in it can use a connection any more. An asynchronous generator
    # would be told by shutdown_asyncgens() too, but not by a plain loop, and too early: while the finalizers of
    # other generators still want the pool.

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._close = loop.close
        self.pools: set[LoopPool] = set()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Closing:
        """The one of this loop, which has one for all its pools."""
        if isinstance(loop.close, cls):
            return loop.close
        closing = cls(loop)
        with contextlib.suppress(AttributeError):  # a loop without room for it: its pools end with the run
            loop.close = closing  # type: ignore[method-assign]
        return closing

    def __call__(self) -> None:
        try:
            if not self._loop.is_running():
                for pool in tuple(self.pools):
                    pool.end_now()
                    pool.forget()
        finally:
            self._close()


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop.run_until_complete(work)
    else:  # a thread runs one loop at a time
        thread = threading.Thread(target=loop.run_until_complete, args=(work,))
        thread.start()
        thread.join()
