"""The connections that the pools of this process may have together: in all loops, of all databases, and parked.

A pool of a loop has two seats for sure from its first use on, so that code which takes two connections at once never
stands still; more are given as they are needed, as long as there are any. When seats are short, parked connections are
closed first, then the pools of other loops that nobody has a connection of; those are opened anew at their next use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from pytest_pgdbm.connections.budget import FEWEST_IN_POOL
from pytest_pgdbm.connections.crowd import Crowd, Wait


class Pool(Protocol):
    """One pool, with its connections in each loop."""

    @property
    def held(self) -> int:
        """How many seats it has."""

    @property
    def is_quiet(self) -> bool:
        """Whether the test that runs now has not used it, and nobody has a connection."""

    def unpark(self) -> None:
        """Closes the connections that wait for a loop."""

    def give_way(self) -> None:
        """Closes the connections of loops in which nobody has one."""


class Turns(Protocol):
    """Gives a process more seats, when it is its turn."""

    async def take(self, seats: Seats, known: int) -> None:
        """Waits until there are more seats than the `known`."""

    def kept(self, seats: Seats) -> contextlib.AbstractAsyncContextManager[None]:
        """Has the seats stay meanwhile."""


class Guest(Protocol):
    """The pool of one loop, which has so many seats."""

    seats: int


class Seats:
    """So many seats; for any thread. `lock` is held by who looks whether a pool is in use, and by who makes it so."""

    def __init__(self, crowd: Crowd, number: int, turns: Turns | None = None) -> None:
        self.number = number
        self.lock = threading.RLock()
        self._turns = turns
        self._crowd = crowd
        self._pools: list[Pool] = []

    def enter(self, pool: Pool) -> None:
        """Has a pool among those that share the seats."""
        with self.lock:
            self._pools.append(pool)

    def leave(self, pool: Pool) -> None:
        """Says that a pool has ended."""
        with self.lock, contextlib.suppress(ValueError):
            self._pools.remove(pool)

    def reserve(self, number: int) -> None:
        """Takes seats away for good; two stay."""
        with self.lock:
            self.number = max(self.number - number, min(self.number, FEWEST_IN_POOL))
            _make_room(self._pools)

    def add(self, guest: Guest, number: int) -> bool:
        """Gives a loop's pool more seats, if there are so many."""
        with self.lock:
            return any(self._given(guest, number) for _ in self._reclaiming())

    async def admit(self, guest: Guest) -> None:
        """Gives a loop's pool its first two seats, and waits for them if need be. Raises NoConnection."""
        wait = None
        while not self.add(guest, FEWEST_IN_POOL):
            known = self.number
            if self._turns is not None:
                await self._turns.take(self, known)
            else:
                wait = wait or self.wait()
                await wait.pause("this worker's share is in use by other event loops")
        if wait is not None:
            wait.over()

    def wait(self) -> Wait:
        """A wait for somebody to give a connection back."""
        return self._crowd.wait()

    def vacate(self) -> bool:
        """Gives up all seats, if no test that runs needs any; whether that is so."""
        with self.lock:
            if not all(pool.is_quiet for pool in self._pools):
                return False
            _make_room(self._pools)
            if any(pool.held for pool in self._pools):
                return False
            self.number = 0
            return True

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Where workers take turns, it is this one's turn meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            if self._turns is not None:
                await stack.enter_async_context(self._turns.kept(self))
            yield

    def _given(self, guest: Guest, number: int) -> bool:
        guest.seats += number
        if sum(pool.held for pool in self._pools) <= self.number:
            return True
        guest.seats -= number
        return False

    def _reclaiming(self) -> Iterator[None]:
        """Takes seats back that nobody needs now, one step after the other."""
        yield
        for pool in self._pools:
            pool.unpark()
            yield
        for pool in self._pools:
            pool.give_way()
            yield


def _make_room(pools: Sequence[Pool]) -> None:
    for pool in pools:
        pool.unpark()
        pool.give_way()
