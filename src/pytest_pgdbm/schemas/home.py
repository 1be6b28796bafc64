"""Where the sets of this process live: it builds them, makes the managers on them, and drops them.

Building a set, leasing it to a test, giving it back and dropping it are separate acts. All of it is done in the private
loop. Under isolation `schema` sets live here, beside each other in one database; under isolation `database` in a
`DatabaseHome`, which does the same with a database for each set.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import LOSS, Term
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.holders import Holder
from pytest_pgdbm.schemas.kept.content import as_read, content
from pytest_pgdbm.schemas.kept.keeping import Keeping
from pytest_pgdbm.schemas.kept.record import Entry, Unreadable
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.schemas.recycling.overlapped import Done
from pytest_pgdbm.schemas.recycling.pristine import Unrecyclable
from pytest_pgdbm.schemas.removal import Removal
from pytest_pgdbm.schemas.site import Common, Site
from pytest_pgdbm.schemas.undoing import Undoing


class Recycled(NamedTuple):
    """A set that was given back.

    `why` it cannot be leased again and is to be dropped, "" if it is as it was; `holders` are connections of its
    test's that were ended, or that may have written to it.
    """

    built: BuiltSet
    why: str = ""
    holders: Sequence[Holder] = ()

    @classmethod
    def of(cls, built: BuiltSet, reason: Unrecyclable | None, ended: Sequence[Holder] = ()) -> Recycled:
        """What came of it, and who was ended for it."""
        if reason is None:
            return cls(built, "", ended)
        return cls(built, str(reason), [*ended, *reason.holders])


class Home:
    """The database in which this process makes its schemas."""

    is_full = False
    """Whether another set is one too many."""

    def __init__(
        self,
        common: Common,
        database: str,
        pool: SharedPool,
        *,
        admin: Admin | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        proof = Proof(common.run.id, frozenset() if keeping is None else keeping.runs)
        self._common = common
        self._keeping = keeping
        self._contents: dict[BuiltSet, str] = {}
        self._numbers = itertools.count(1)
        self._undoing = Undoing()
        self._mine: set[BuiltSet] = set()
        self._stuck: list[BuiltSet] = []
        self._losses = 0
        self._site = Site(common, database, pool, proof, admin=admin, keeping=keeping)
        self._site.admin.on_loss.append(self._lose)
        self._removal = Removal(self._site.admin, proof, common.application("pool"))

    async def build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        """A new set on the server. `others` are the other services that the run knows.

        Raises BuildError, or whatever interrupts it; then nothing is left.
        """
        before = self._content(plan, others)
        built = await self._common.contents.built(plan, lambda: self._build(plan, others))
        if before is not None and as_read(plan) and before == self._content(plan, others):
            self._contents[built] = before
        return built

    async def wake(self, plan: Plan, others: Sequence[str]) -> BuiltSet | None:
        """A set that an earlier run has kept, of the same content and as it was then; None if there is none."""
        content = self._content(plan, others)
        while content is not None and (entry := self._kept(content)) is not None:
            built = BuiltSet(plan, entry.schemas, self._site.database)
            self._mine.add(built)
            if await self._adopted(built, entry):
                self._contents[built] = content
                return built
            await self.drop([built])
        return None

    def managers(
        self, built: BuiltSet, term: Term, names: Mapping[str, str], path: SearchPath | None = None
    ) -> dict[str, Database]:
        """A manager on each schema of the set, for as long as `term` lasts.

        `names` are what its SQL can speak of; `path` is its search path where that is not the run's.
        """
        return self._site.managers(built, term, names, path)

    def own_pool(self, built: BuiltSet) -> SharedPool | None:
        """The pool that only this set's tests have; None, since all sets here share one."""
        return None

    async def settle_in(self, built: BuiltSet) -> None:
        """Makes a set ready to be leased again and again; before it is leased first. Raises Unrecyclable."""
        await self._site.settle_in(built)

    async def recycle(self, built: BuiltSet, over: float | None = None, found: Found | None = None) -> Recycled:
        """Makes a set that was leased as it was before; to be called when nobody uses it any more.

        `over` is when its test ended, by `time.monotonic()`; now, unless it is said. `found` is what `begin` found.
        """
        return Recycled.of(built, await self._site.recycle(built, over, found))

    def begin(self, built: BuiltSet, over: float, done: Done) -> bool:
        """Begins to do the same by messages that nobody waits for; False if that cannot be now. From any thread.

        `done` is called, after some calls of `go_on`, with whether the set is as it was; if not, with what was found.
        """
        return self._site.begin(built, over, done)

    def go_on(self) -> bool:
        """Hears what came of the messages, and sends what follows; from any thread, without waiting.

        Returns whether more is to come.
        """
        return self._site.go_on()

    def give_up(self) -> None:
        """Gives up what was begun, since nobody knows any more what that is: all sets are lost. From any thread."""
        self._site.admin.give_up_line()

    @property
    def is_given_up(self) -> bool:
        """Whether all sets are lost with the next work: after an interruption, or where the session has ended."""
        return self._site.admin.is_given_up

    async def finish(self) -> None:
        """Has all come back that was begun, or be told that it has not."""
        with contextlib.suppress(*FAILURES):  # a connection that is lost has nothing to come back
            await self._site.finish()

    async def drop(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Drops sets, all together; returns what had to stay, and who had to be cut off for it.

        A connection that still holds a lock on one of the schemas would have the drop wait for it. Sets from before a
        loss of the connection are for others to sweep.
        """
        self._site.forget(sets)
        going = [each for each in sets if each in self._mine]
        kept, holders = await self._removal.remove([list(each.schemas.values()) for each in going])
        names = {each.name for each in kept}
        stuck = [each for each in going if names.intersection(each.schemas.values())]
        self._stuck += stuck
        self._mine.difference_update(each for each in going if each not in stuck)
        return kept, holders

    async def drop_stuck(self) -> set[str]:
        """Tries once more to drop what had to stay, all of it together: one set may have been in another's way.

        Returns the schemas that are gone now.
        """
        stuck, self._stuck = [each for each in self._stuck if each in self._mine], []
        kept, _ = await self.drop(stuck)
        return {schema for each in stuck for schema in each.schemas.values()} - {each.name for each in kept}

    async def retire(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Says that the run needs these sets no more: those are kept that the next one can use, the others dropped."""
        return await self.drop([each for each in sets if not self._is_kept(each)])

    async def close(self) -> None:
        """Ends the work, after what is being undone. What was built and not dropped or retired stays."""
        await self._undoing.idle()
        if self._keeping is not None:
            await self._removal.remove(self._keeping.take_unasked())
        await self._site.close()

    def _content(self, plan: Plan, others: Sequence[str]) -> str | None:
        """What tells a set from others in another run; None if it is not to be kept."""
        if self._keeping is None:
            return None
        settings = [repr(self._common.path.entries), *sorted(self._common.extensions)]
        try:
            return content(plan, others, settings)
        except BuildError:
            return None

    def _kept(self, content: str) -> Entry | None:
        return None if self._keeping is None else self._keeping.take(content)

    async def _adopted(self, built: BuiltSet, entry: Entry) -> bool:
        try:
            return await self._site.adopt(built, entry.read())
        except Unreadable:
            return False

    def _is_kept(self, built: BuiltSet) -> bool:
        content = self._contents.pop(built, None)
        entry = None if content is None else Entry.of(content, built.schemas, self._site.pristine(built))
        if self._keeping is None or entry is None:
            return False
        self._keeping.add(entry)
        self._site.forget([built])
        return True

    async def _build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        schemas = {name: self._new_name(name) for name in plan.names}
        losses = self._losses
        work = self._made(plan, schemas, others)
        return await self._undoing.do(work, lambda error: self._undo(list(schemas.values()), losses, error))

    async def _made(self, plan: Plan, schemas: Mapping[str, str], others: Sequence[str]) -> BuiltSet:
        losses = self._losses
        built = await self._site.build(plan, schemas, others)
        if self._losses != losses:
            raise BuildError(f"the schemas of {', '.join(map(repr, plan.names))} were lost: {LOSS}")
        self._mine.add(built)
        return built

    def _lose(self) -> None:
        """What was made by now is not this process's any more."""
        self._losses += 1
        self._mine.clear()

    def _new_name(self, service: str) -> str:
        run = self._common.run
        return names.schema_name(service, run=run.id, worker=run.worker, number=next(self._numbers))

    async def _undo(self, schemas: Sequence[str], losses: int, error: BaseException) -> None:
        # Where there is no connection, none was lost either, there was none to make anything by.
        if self._losses == losses and self._site.admin.is_open:
            kept, _ = await self._removal.remove([schemas])
            tell_what_stays(error, kept)


def tell_what_stays(error: BaseException, kept: Sequence[Kept]) -> None:
    """Adds to a BuildError what could not be undone."""
    if kept and isinstance(error, BuildError):
        lines = [f"  {each.kind} {each.name} stays: {each.why}" for each in kept]
        error.args = ("\n".join([str(error), *lines]),)
