"""The pools of a process: one for each database that tests work in."""

from __future__ import annotations

from collections.abc import Collection

from pytest_pgdbm.connections.opening import Opening
from pytest_pgdbm.connections.pools import Checkout, SharedPool
from pytest_pgdbm.connections.seats import Seats


class Pools:
    """All of them, asked and told together. Pools come and go in the private loop, while tests use theirs.

    They share the `seats`.
    """

    def __init__(self, test: str, seats: Seats) -> None:
        self.seats = seats
        self._test = test
        self._pools: tuple[SharedPool, ...] = ()

    def add(self, opening: Opening) -> SharedPool:
        """Another pool."""
        pool = SharedPool(
            opening.open,
            opening.end_backends,
            opening.clean,
            min_size=opening.min_size,
            max_size=opening.max_size,
            seats=self.seats,
        )
        pool.application_name = opening.application_name
        pool.test_name = self._test
        self._pools = (*self._pools, pool)
        return pool

    def give_up(self, pool: SharedPool) -> None:
        """Lets go of a pool whose database is about to be dropped, and of its connections in all loops."""
        self._pools = tuple(each for each in self._pools if each is not pool)
        pool.give_up()

    def begin_test(self, test: str) -> None:
        """Says which test runs now."""
        self._test = test
        for pool in self._pools:
            pool.test_name = test

    def next_test(self) -> None:
        """Says that a test is over: no connection is lent any more with session state from before."""
        for pool in self._pools:
            pool.next_test()

    @property
    def lost(self) -> bool:
        """Whether a loop ended with connections out since `take_lost` was called last."""
        return any(pool.lost for pool in self._pools)

    def is_out_for(self, owners: Collection[object], ended: Collection[SharedPool]) -> bool:
        """Whether one of these owners, or anybody at all in one of these pools, has a connection."""
        return any(pool.is_out_for(None if pool in ended else owners) for pool in self._pools)

    async def take_lost(self, owners: Collection[object], ended: Collection[SharedPool]) -> list[Checkout]:
        """Connections that will not come back, cut off: see `SharedPool.take_lost`. From `ended` pools, all of them."""
        lost: list[Checkout] = []
        for pool in self._pools:
            lost += await pool.take_lost(None if pool in ended else owners)
        return lost

    def end(self) -> None:
        """Closes the connections of all loops; to be called outside of all of them, at the end of the run."""
        for pool in self._pools:
            pool.end()
