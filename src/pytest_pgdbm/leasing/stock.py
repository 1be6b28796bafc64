"""The sets of one content that this process has: two or three of them are leased in turn.

While a test works in one, the others are made as they were. A test then waits for nothing; it would wait for the set
that the test before it gave back just now.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.connections.terms import LOSS
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.schemas.database_home import DatabaseHome
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.holders import Holder
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.schemas.recycling.overlapped import Done, come
from pytest_pgdbm.schemas.recycling.pristine import Unrecyclable

AnyHome: TypeAlias = "Home | DatabaseHome"
"""Where sets live; one of them for each isolation."""

LEASES_FOR_TWO, LEASES_FOR_THREE = 3, 12
"""So many tests have asked for a content before a second set is built, and a third."""


class Outcome(NamedTuple):
    """What came of a set that was given back: why it was dropped, "" if it is ready; what stayed, who was cut off."""

    why: str = ""
    kept: Sequence[Kept] = ()
    holders: Sequence[Holder] = ()


class Stock:
    """Sets of one content: leased, on their way back, or ready. To be used in the private loop.

    `others` are the other services that the run knows.
    """

    def __init__(self, home: AnyHome, plan: Plan, others: Sequence[str]) -> None:
        self.home = home
        self._plan = plan
        self._others = others
        self._ready: deque[BuiltSet] = deque()
        self._sets: set[BuiltSet] = set()
        self._coming: set[asyncio.Task[Any]] = set()
        self._begun: set[BuiltSet] = set()
        self._leases = 0
        self._unready: dict[BuiltSet, str] = {}

    async def take(self) -> BuiltSet:
        """A set that nobody else has. Raises BuildError."""
        while True:
            built = self.take_now()
            if built is not None:
                return built
            if self._begun:
                await come(self.home.go_on, lambda: bool(self._ready))
                if not self._ready:
                    await self.finish()
                continue
            if not self._coming or (self._wants_more and self._seeds_run_code):
                break
            await asyncio.wait(self._coming, return_when=asyncio.FIRST_COMPLETED)
        self._leases += 1
        return await self._new()

    def take_now(self) -> BuiltSet | None:
        """A set that nobody else has, if one is ready; from any thread."""
        if not self._ready and self._begun:
            self.home.go_on()
        try:
            built = self._ready.popleft()
        except IndexError:
            return None
        self._leases += 1
        return built

    def begin(self, built: BuiltSet, over: float, came: Done) -> bool:
        """As `give_back`, by messages that nobody waits for; False if it cannot be done so now. From any thread.

        `came` is called with whether it is ready; if not, it is to be given back with what was found. So it is if it
        cannot be done; until then it is waited for.
        """

        def done(as_it_was: bool, found: Found | None) -> None:
            mine = built in self._sets  # not if all were lost meanwhile
            if as_it_was and mine:
                self._begun.discard(built)
                self._ready.append(built)
            came(as_it_was and mine, found)

        self._begun.add(built)
        able = not self._wants_more and built in self._sets
        return able and self.home.begin(built, over, done)

    def abandon(self, built: BuiltSet) -> None:
        """Says that nobody gives a set back that was, perhaps, begun: it is not waited for, nor leased again."""
        self._begun.discard(built)
        self._sets.discard(built)

    def give_back(
        self, built: BuiltSet, over: float | None = None, found: Found | None = None
    ) -> asyncio.Task[Outcome]:
        """Begins to make a set ready for the next test, or to drop it; the task returns what came of it.

        `over` is when its test ended, by `time.monotonic()`; now, unless it is said. `found` is what `begin` found.
        """
        coming = asyncio.ensure_future(self._back(built, over, found))
        self._comes(coming)
        self._begun.discard(built)
        return coming

    async def clear(self) -> tuple[list[Kept], list[Holder]]:
        """Gives up the sets that are not leased, once those that are on their way have come."""
        self._leases = 0  # nothing is built ahead any more
        while self._begun or self._coming:
            await self.finish()
            if self._coming:
                await asyncio.wait(self._coming)
        ready = list(self._ready)
        self._ready.clear()
        self._sets.difference_update(ready)
        return await self.home.retire(ready)

    def lose(self) -> list[BuiltSet]:
        """Gives up all sets: they are not this process's any more. Returns those that nobody has."""
        waiting = [*self._ready, *self._begun]
        self._ready.clear()
        self._sets.clear()
        self._begun.clear()
        return waiting

    @property
    def must_build(self) -> bool:
        """Whether there is no set to be had but a new one."""
        return not self._ready and not self._coming and not self._begun

    async def drop_one(self) -> tuple[list[Kept], list[Holder]]:
        """Drops a set that nobody has, if there is one; waits for those that are on their way."""
        await self.finish()
        if self._coming and not self._ready:
            await asyncio.wait(self._coming)
        if not self._ready:
            return [], []
        built = self._ready.popleft()
        self._sets.discard(built)
        return await self.home.drop([built])

    async def finish(self) -> None:
        """Has what was begun come back, or be on its way as what was not."""
        while self._begun:
            await self.home.finish()
            await asyncio.sleep(0)  # what could not be ended so is given back in one of the next turns of the loop

    @property
    def _wants_more(self) -> bool:
        wanted = 1 + (self._leases >= LEASES_FOR_TWO) + (self._leases >= LEASES_FOR_THREE)
        return len(self._sets) < wanted and (not self._sets or not self.home.is_full)

    @property
    def _seeds_run_code(self) -> bool:
        return any(callable(seed) for member in self._plan.members for seed in member.service.seeds)

    def _grow(self) -> None:
        # A seed that is a function of the user's must not run beside a test. Nobody waits for what nobody asked for: it
        # would be built for ever where what is built cannot be leased again.
        if self._leases and self._wants_more and not self._coming and not self._seeds_run_code:
            self._comes(asyncio.ensure_future(self._add()))

    def _comes(self, task: asyncio.Task[Any]) -> None:
        self._coming.add(task)
        task.add_done_callback(self._came)

    def _came(self, task: asyncio.Task[Any]) -> None:
        self._coming.discard(task)
        self._grow()

    async def _back(self, built: BuiltSet, over: float | None, found: Found | None) -> Outcome:
        with quietly():
            if built not in self._sets:
                why = f"it could not be made ready to be used again: {self._unready.pop(built, LOSS)}"
                return Outcome(why, *await self.home.drop([built]))
            recycled = await self.home.recycle(built, over, found)
            if not recycled.why and built in self._sets:
                self._ready.append(built)
                return Outcome(holders=recycled.holders)
            self._sets.discard(built)
            kept, holders = await self.home.drop([built])
            ended = {each.pid for each in holders}
            return Outcome(
                recycled.why or LOSS, kept, [*(each for each in recycled.holders if each.pid not in ended), *holders]
            )

    async def _add(self) -> None:
        with quietly():
            try:
                built = await self._new()
            except BuildError:
                # It was built before, so that what went wrong now will come up where it can be told.
                self._leases = 0
                return
            if built in self._sets:
                self._ready.append(built)
            else:
                self._leases = 0
                self._unready.pop(built, None)
                await self.home.drop([built])

    async def _new(self) -> BuiltSet:
        """A set that an earlier run has kept, or one that is built.

        If that could not be made ready to be leased again, it is dropped when it comes back.
        """
        kept = await self.home.wake(self._plan, self._others)
        if kept is not None:
            self._sets.add(kept)
            return kept
        built = await self.home.build(self._plan, self._others)
        try:
            await self.home.settle_in(built)
            self._sets.add(built)
        except Unrecyclable as reason:
            self._unready[built] = str(reason)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.home.drop([built])))
            raise
        return built
