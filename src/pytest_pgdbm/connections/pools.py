"""The pool that is one object for its users and one real asyncpg pool in each event loop.

asyncpg's connections belong to the loop that made them. A session-scoped application holds one pool object, though,
while tests run in loops of any scope, in a `TestClient`'s thread, in `asyncio.run`. So each call is handed to the
running loop's real pool, which is made at the first use there and closed with that loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from typing import Any, NamedTuple

import asyncpg

from pytest_pgdbm.connections.acquiring import Acquiring
from pytest_pgdbm.connections.backends import Activity
from pytest_pgdbm.connections.cleaning import Clean
from pytest_pgdbm.connections.loop import running_loop
from pytest_pgdbm.connections.loop_pool import LoopPool, OpenPool, is_closed, terminate
from pytest_pgdbm.connections.parking import ParkedConnections
from pytest_pgdbm.connections.places import Place
from pytest_pgdbm.connections.seats import Seats

MOST_PARKED = 10
"""How many server connections at most wait for the next loop."""

EndBackends = Callable[[Collection[int]], Awaitable[dict[int, Activity]]]


class Checkout(NamedTuple):
    """A connection that is out: the server process that serves it, where it was taken and for whom.

    `test` is the test that ran then; `activity` is what it was doing when it was cut off, None if it was not or if that
    could not be read.
    """

    pid: int
    place: Place
    owner: object | None
    pool: asyncpg.Pool
    connection: Any
    loop: asyncio.AbstractEventLoop
    test: str
    activity: Activity | None = None


class SharedPool(asyncpg.Pool):  # type: ignore[misc]  # asyncpg has no types
    """An `asyncpg.Pool` that hands each call to the running event loop's real pool.

    `close()` ends the connections of the running loop only, and the next use opens new ones: the tests of an
    application that closes its pool at shutdown go on.
    """

    __slots__ = (
        "__weakref__",
        "_clean",
        "_end_backends",
        "_lock",
        "_loops",
        "_lost",
        "_open",
        "_out",
        "_parked",
        "_seats",
        "_sizes",
        "_test",
        "application_name",
        "test_name",
    )

    def __init__(
        self,
        open_pool: OpenPool,
        end_backends: EndBackends,
        clean: Clean,
        *,
        min_size: int,
        max_size: int,
        seats: Seats,
    ) -> None:
        # Not asyncpg's own __init__: it would bind this object to one loop. Everything public is overridden here.
        self._open = open_pool
        self._end_backends = end_backends
        self._clean = clean
        self._sizes = (min_size, max_size)
        self._seats = seats
        self._parked = ParkedConnections(min(max_size, MOST_PARKED))
        self._loops: dict[asyncio.AbstractEventLoop, LoopPool] = {}
        self._out: dict[int, Checkout] = {}
        self._lost: list[Checkout] = []
        self._lock = threading.Lock()
        self._test = 0
        self.test_name = ""
        """The test that runs now, for what is said about connections."""
        self.application_name = ""
        """What its connections call themselves."""
        self._seats.enter(self)

    def acquire(self, *, timeout: float | None = None) -> Any:
        """A connection of the running loop's pool; to be awaited, or entered by `async with`."""
        return Acquiring(self._take, self.release, timeout, None)

    def acquire_for(self, owner: object) -> Any:
        """As `acquire`, and remembers the owner while the connection is out."""
        return Acquiring(self._take, self.release, None, owner)

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Gives a connection back to the pool that it came from."""
        with self._lock:
            checkout = self._out.pop(id(connection), None)
        if checkout is not None:
            try:
                await checkout.pool.release(connection, timeout=timeout)
            finally:
                if (lender := self._loops.get(checkout.loop)) is not None:
                    lender.released(checkout.pool)
        elif not is_closed(connection):
            await (await self._begun()).release(connection, timeout=timeout)

    def next_test(self) -> None:
        """Says that a test is over: no connection is lent any more with session state from before."""
        self._test += 1

    @property
    def lost(self) -> bool:
        """Whether a loop ended with connections out since `take_lost` was called last."""
        return bool(self._lost)

    def is_out_for(self, owners: Collection[object] | None) -> bool:
        """Whether one of these has a connection that it took; whether anybody has, for None."""
        with self._lock:
            return any(owners is None or checkout.owner in owners for checkout in self._out.values())

    async def take_lost(self, owners: Collection[object] | None) -> list[Checkout]:
        """Connections that will not come back: out when their loop ended, or for an owner that has ended.

        For None that is everybody. The latter are cut off, and their pools have room for new ones. To be called outside
        of the tests' loops.
        """
        left = self._pop_out(lambda checkout: owners is None or checkout.owner in owners)
        cut = await self._cut(left)
        for checkout in left:
            with contextlib.suppress(RuntimeError):  # its loop was closed just now
                checkout.loop.call_soon_threadsafe(terminate, checkout.connection)
        with self._lock:
            lost, self._lost = self._lost, []
        return lost + cut

    async def close(self) -> None:
        """Closes the running loop's connections once they are given back; five seconds later, without waiting."""
        mine = self._running()
        if mine is not None:
            await mine.end()

    def terminate(self) -> None:
        """Cuts the running loop's connections off."""
        mine = self._running()
        if mine is not None and (pool := mine.terminate()) is not None:
            self._pop_out(lambda checkout: checkout.pool is pool)

    def end(self) -> None:
        """Closes the connections of all loops; to be called outside of all of them, at the end of the run."""
        for loop_pool in list(self._loops.values()):
            loop_pool.end_now()
        self._parked.close()

    def give_up(self) -> None:
        """Cuts off the connections of all loops, each in its loop, when that runs next; from any thread."""
        self._parked.close()
        self._seats.leave(self)
        for loop, loop_pool in list(self._loops.items()):
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(loop_pool.give_up)

    @property
    def held(self) -> int:
        """How many of the process's seats it has."""
        loops = tuple(self._loops.values())
        # What is parked is revived before anything new is opened.
        return max(sum(each.held for each in loops), sum(each.size for each in loops) + len(self._parked))

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has a connection, and the test that runs now has had none."""
        return all(each.is_idle and each.used_in != self._test for each in tuple(self._loops.values()))

    def unpark(self) -> None:
        """Closes the connections that wait for a loop, and has loops give back seats that they do not need."""
        self._parked.forget()
        for each in tuple(self._loops.values()):
            each.trim()

    def give_way(self) -> None:
        """Closes the connections of loops in which nobody has one; from any thread."""
        for each in tuple(self._loops.values()):
            each.give_way()

    async def expire_connections(self) -> None:
        """Has the running loop's connections replaced as they come back, and those that wait for a loop closed."""
        self._parked.forget()
        await (await self._begun()).expire_connections()

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
        yield from self._begun().__await__()
        return self

    async def __aenter__(self) -> SharedPool:
        """Opens the running loop's pool."""
        await self._begun()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes the running loop's connections."""
        await self.close()

    def __repr__(self) -> str:
        """How many loops have a pool now, and what becomes of connections whose loop ends."""
        loops = sum(each.pool is not None for each in self._loops.values())
        why = self._parked.off_because
        kept = f"connections end with their loop: {why}" if why else f"{len(self._parked)} connections wait for a loop"
        return f"<pytest-pgdbm pool, open in {loops} loops; {kept}>"

    async def _take(self, timeout: float | None, owner: object | None, place: Place) -> Any:
        mine = self._mine()
        pool, connection, pid = await mine.acquire(timeout, self._test)
        checkout = Checkout(pid, place, owner, pool, connection, mine.loop, self.test_name)
        with self._lock:
            self._out[id(connection)] = checkout
        return connection

    def _mine(self) -> LoopPool:
        loop = running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            mine = self._loops[loop] = LoopPool(
                loop,
                self._open,
                self._parked,
                min_size=self._sizes[0],
                clean=self._clean,
                cut_off=self._cut_off,
                ended=lambda: self._forget(loop),
                shared=self._seats,
            )
        return mine

    async def _begun(self) -> asyncpg.Pool:
        mine = self._mine()
        return mine.pool or await mine.begin()

    def _running(self) -> LoopPool | None:
        try:
            return self._loops.get(asyncio.get_running_loop())
        except RuntimeError:
            return None

    def _opened(self) -> asyncpg.Pool | None:
        mine = self._running()
        return mine.pool if mine else None

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loops.pop(loop, None)

    async def _cut_off(self, pool: asyncpg.Pool) -> None:
        cut = await self._cut(self._pop_out(lambda checkout: checkout.pool is pool))
        with self._lock:
            self._lost += cut

    def _pop_out(self, wanted: Callable[[Checkout], bool]) -> list[Checkout]:
        with self._lock:
            popped = [checkout for checkout in self._out.values() if wanted(checkout)]
            for checkout in popped:
                del self._out[id(checkout.connection)]
        # asyncpg takes a connection that its user closed as given back.
        return [checkout for checkout in popped if not is_closed(checkout.connection)]

    async def _cut(self, checkouts: Sequence[Checkout]) -> list[Checkout]:
        if not checkouts:
            return []
        activities = await self._end_backends([checkout.pid for checkout in checkouts])
        return [each._replace(activity=activities.get(each.pid)) for each in checkouts]
