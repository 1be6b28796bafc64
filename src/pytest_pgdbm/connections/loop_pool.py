"""The real pool of one event loop, which ends with its loop; its server connections can be parked for the next."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg

from pytest_pgdbm.connections.budget import FEWEST_IN_POOL
from pytest_pgdbm.connections.cleaning import Clean
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.parking import ParkedConnections, hang_up
from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.connections.seats import Seats

SECONDS_TO_DRAIN = 5.0
"""How long `close()` waits for connections that are out, before it cuts them off."""

SECONDS_TO_CLOSE = 2.0
"""How long connections that nobody uses may take to be closed, before they are cut off."""

OpenPool = Callable[[], Awaitable[asyncpg.Pool]]
CutOff = Callable[[asyncpg.Pool], Awaitable[None]]


class LoopPool:
    """The pool of one loop: made at the first use, closed by `end`, made anew at the next use.

    `min_size` connections are opened with it. Those that nobody uses at its end go to `parked`; with a pool that has
    others out then `cut_off` is called. `ended` is called when the loop is closed. It never has more connections than
    it was given of the `shared` seats. `clean` has a session forget what an earlier test has left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        open_pool: OpenPool,
        parked: ParkedConnections,
        *,
        min_size: int,
        clean: Clean,
        cut_off: CutOff,
        ended: Callable[[], None],
        shared: Seats,
    ) -> None:
        self.loop = loop
        self.pool: asyncpg.Pool | None = None
        self.seats = 0
        self.used_in = -1
        """The test that took a connection last, as a number."""
        self._shared = shared
        self._entering = 0
        self._lent = 0
        self._ending = 0
        self._left: list[asyncpg.Pool] = []
        self._queue = asyncio.Lock()
        self._released = asyncio.Event()
        self._open = open_pool
        self._parked = parked
        self._min_size = min_size
        self._clean = clean
        self._cut_off = cut_off
        self._opening = asyncio.Lock()
        self._cleaned: dict[int, int] = {}
        self._ended = ended
        self._closing = _Closing.of(loop)
        self._closing.pools.add(self)

    @property
    def held(self) -> int:
        """How many seats it has, those of connections that are being closed among them."""
        return self.seats + self._ending

    @property
    def size(self) -> int:
        """How many connections it has open."""
        pool = self.pool
        return pool.get_size() if pool is not None else 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a connection, or is about to."""
        return self._busy(self.pool) == 0

    async def begin(self) -> asyncpg.Pool:
        """The pool; to be called in its loop. Raises NoConnection if there is no room for it."""
        async with self._opening:
            if self.pool is None:
                await self._shared.admit(self)
                try:
                    with quietly():
                        self.pool = await self._begun()
                except BaseException:
                    self.seats = 0
                    raise
            return self.pool

    async def end(self, patience: float = SECONDS_TO_DRAIN) -> None:
        """Closes the pool once all connections are given back; after `patience` seconds, without waiting."""
        self._let_go()
        pool, seats = self._detach()
        if pool is None:
            return
        self._ending += seats
        try:
            await self._end(pool, patience)
        finally:
            self._ending -= seats

    async def _end(self, pool: asyncpg.Pool, patience: float) -> None:
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
        if (self.pool is None and not self._left) or self.loop.is_closed():
            return
        if self.loop.is_running():
            ending = asyncio.run_coroutine_threadsafe(self.end(0), self.loop)
            concurrent.futures.wait([ending], timeout=2 * SECONDS_TO_CLOSE)
        else:
            _run(self.loop, self.end(0))

    async def _begun(self) -> asyncpg.Pool:
        pool = await self._opened()
        self._parked.adopt(pool)
        try:
            missing = self._min_size - self.seats
            await _fill(pool, self._min_size if missing <= 0 or self._shared.add(self, missing) else self.seats)
        except BaseException:
            pool.terminate()
            raise
        return pool

    async def _opened(self) -> asyncpg.Pool:
        wait = self._shared.wait()
        while True:
            try:
                return await self._open()
            except asyncpg.TooManyConnectionsError as error:
                await wait.pause(f"the server says: {error}")

    async def _close(self, pool: asyncpg.Pool, drained: bool) -> None:
        await self._parked.park(pool)
        if drained and pool.get_size():
            await pool.close()

    def give_up(self) -> None:
        """Cuts off the connections, for good; to be called in its loop."""
        self.terminate()
        self.forget()

    def terminate(self) -> asyncpg.Pool | None:
        """Cuts off the connections and returns the pool that had them; to be called in its loop."""
        self._let_go()
        pool, _ = self._detach()
        if pool is not None:
            pool.terminate()
        return pool

    def give_way(self) -> None:
        """Closes the connections, from any thread, if nobody has one; the loop need not run, and may be blocked."""
        with self._shared.lock:
            pool = self._detach()[0] if self.pool is not None and self.is_idle else None
        if pool is not None:
            hang_up(pool)
            self._left.append(pool)
            with contextlib.suppress(RuntimeError):  # it was closed just now
                self.loop.call_soon_threadsafe(self._let_go)

    def trim(self) -> None:
        """Gives back the seats that are for connections which it does not have."""
        with self._shared.lock:
            pool = self.pool
            if pool is not None:
                self.seats = min(self.seats, max(FEWEST_IN_POOL, pool.get_size() + self._entering))

    def released(self, pool: asyncpg.Pool) -> None:
        """Says that a connection was given back to this pool; to be called in its loop."""
        if pool is self.pool:
            self._lent -= 1
        self._released.set()

    def _detach(self) -> tuple[asyncpg.Pool | None, int]:
        with self._shared.lock:
            pool, self.pool = self.pool, None
            self._lent = 0
            seats, self.seats = (self.seats, 0) if pool is not None else (0, self.seats)
        return pool, seats

    def _let_go(self) -> None:
        """Tidies up after connections that were closed from elsewhere."""
        while self._left:
            self._left.pop().terminate()

    def _busy(self, pool: asyncpg.Pool | None) -> int:
        return self._entering + (pool.get_size() - pool.get_idle_size() if pool is not None else 0)

    def _is_full(self, pool: asyncpg.Pool) -> bool:
        # Those that were lent are at least those that are busy, some of which may have died. asyncpg counts them one by
        # one, at each look.
        return self._lent + self._entering >= self.seats and self._busy(pool) >= self.seats

    def forget(self) -> None:
        """Says that it has ended."""
        self._closing.pools.discard(self)
        self._ended()

    async def acquire(self, timeout: float | None, test: int) -> tuple[asyncpg.Pool, Any, int]:
        """A connection without session state of an earlier test, its pool and its server process.

        `test` counts the tests. Within one, a connection is as its last user left it, as in production.
        """
        self.used_in = test
        while True:
            try:
                pool, connection = await self._taken(timeout)
            except Exception as error:
                # asyncpg's frames have the password among their arguments, and pytest prints those.
                raise error.with_traceback(None) from None
            pid = connection.get_server_pid()
            # A process that is not known has just begun.
            if self._cleaned.setdefault(pid, test) == test or await self._is_clean(connection):
                self._cleaned[pid] = test
                return pool, connection, pid

    async def _is_clean(self, connection: Any) -> bool:
        """Whether it could be cleaned. One that could not goes back to its pool, closed, and makes room for another."""
        clean = False
        try:
            # One that died in an earlier test does not survive this.
            with contextlib.suppress(*FAILURES):
                clean = await self._clean(connection)
        finally:
            if not clean:
                terminate(connection)
        return clean

    async def _taken(self, timeout: float | None) -> tuple[asyncpg.Pool, Any]:
        at_once = None if self._queue.locked() else self._enter()
        pool: asyncpg.Pool = at_once or await asyncio.wait_for(self._entered(), timeout)
        try:
            connection = await pool.acquire(timeout=timeout)
        except asyncpg.TooManyConnectionsError as error:
            connection = await asyncio.wait_for(self._taken_at_last(pool, error), timeout)
        finally:
            self._entering -= 1
        if pool is self.pool:
            self._lent += 1
        return pool, connection

    def _enter(self) -> asyncpg.Pool | None:
        """The pool, if a connection can be taken from it, or opened, without one seat too many."""
        with self._shared.lock:
            pool = self.pool
            if pool is None:
                return None
            full = self._is_full(pool)
            # A pool with all of its connections has who wants one stand in a queue of its own.
            if full and self.seats < pool.get_max_size() and not self._shared.add(self, 1):
                return None
            self._entering += 1
            return pool

    async def _entered(self) -> asyncpg.Pool:
        async with self._queue:
            wait = None
            while True:
                await self.begin()
                self._released.clear()
                if (pool := self._enter()) is not None:
                    return pool
                wait = wait or self._shared.wait()
                await wait.pause("this worker's share is in use", self._released)
                if self._released.is_set():
                    wait.go_on()

    async def _taken_at_last(self, pool: asyncpg.Pool, error: Exception) -> Any:
        """A connection once the server, which is full, lets in another one."""
        wait = self._shared.wait()
        while True:
            await wait.pause(f"the server says: {error}")
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                connection = await pool.acquire()
                wait.over()
                return connection


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
        self._process = os.getpid()
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
                    if os.getpid() == self._process:  # a forked child would end its parent's connections
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
