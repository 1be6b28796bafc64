"""Where sets live under isolation `database`: each in a database of its own, under the real names of its services."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.budget import Budget
from pytest_pgdbm.connections.crowd import no_room_for_databases
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pool_set import Pools
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas import visitors
from pytest_pgdbm.schemas.databases import Databases
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.holders import Holder
from pytest_pgdbm.schemas.home import Recycled, tell_what_stays
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.schemas.recycling.overlapped import Done
from pytest_pgdbm.schemas.site import Common, Site
from pytest_pgdbm.schemas.undoing import Undoing


class DatabaseHome:
    """Makes a database for each set, and does there what a `Home` does in its one database.

    `open_pool` makes the pool of a database. Databases that wait for a test hold connections, hence the budget. `admin`
    is for the database by way of which others are made and dropped.
    """

    def __init__(
        self,
        common: Common,
        pools: Pools,
        open_pool: Callable[[str], SharedPool],
        budget: Budget,
        admin: Admin,
    ) -> None:
        self._common = common
        self._pools = pools
        self._open_pool = open_pool
        self._budget = budget
        self._numbers = itertools.count(1)
        self._undoing = Undoing()
        self._databases = Databases(admin, common.endpoint, Proof(common.run.id))
        admin.on_loss.append(self._lose)
        self._open: set[Site] = set()
        self._lost: set[Site] = set()
        self._sites: dict[BuiltSet, Site] = {}
        self._seated = False

    @property
    def is_full(self) -> bool:
        """Whether another database is one too many."""
        return len(self._open) >= self._budget.databases

    @property
    def _pooled(self) -> bool:
        return self._common.endpoint.pooling != "none"

    async def build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        """A new set in a database of its own. Raises BuildError, NoConnection, or whatever interrupts it.

        Then nothing is left.
        """
        if not self._budget.databases:
            raise no_room_for_databases(self._common.endpoint)
        return await self._common.contents.built(plan, lambda: self._build(plan, others))

    def managers(
        self, built: BuiltSet, term: Term, names: Mapping[str, str], path: SearchPath | None = None
    ) -> dict[str, Database]:
        """A manager on each schema of the set, as `Home.managers`."""
        return self._sites[built].managers(built, term, names, path)

    def own_pool(self, built: BuiltSet) -> SharedPool | None:
        """The pool that only this set's tests have."""
        return self._sites[built].pool

    async def settle_in(self, built: BuiltSet) -> None:
        """Makes a set ready to be leased again and again; before it is leased first. Raises Unrecyclable."""
        await self._sites[built].settle_in(built)

    def begin(self, built: BuiltSet, over: float, done: Done) -> bool:
        """As `Home.begin`; not while any connection of its test's is left, whose end is waited for."""
        return not self._pooled and self._sites[built].begin(built, over, done)

    def go_on(self) -> bool:
        """As `Home.go_on`."""
        busy = [site.go_on() for site in tuple(self._open)]
        return any(busy)

    def give_up(self) -> None:
        """As `Home.give_up`."""
        for site in tuple(self._open):
            site.admin.give_up_line()

    @property
    def is_given_up(self) -> bool:
        """As `Home.is_given_up`, of any of them."""
        return any(site.admin.is_given_up for site in tuple(self._open))

    async def finish(self) -> None:
        """As `Home.finish`."""
        for site in tuple(self._open):
            with contextlib.suppress(*FAILURES):
                await site.finish()

    async def recycle(self, built: BuiltSet, over: float | None = None, found: Found | None = None) -> Recycled:
        """Makes a database that was leased as it was before, once all connections to it have ended."""
        site = self._sites[built]
        try:
            holders = await self._empty(site)
        except FAILURES as error:
            return Recycled(built, f"the server said: {masked(str(error))}")
        return Recycled.of(built, await site.recycle(built, over, found), holders)

    async def drop(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Drops sets with their databases; returns what had to stay, and who had to be cut off for it.

        Whoever is interrupted meanwhile has them dropped nevertheless.
        """
        # A database whose drop was interrupted can be dropped, and nothing else.
        sites = [self._sites.pop(each, None) for each in sets]
        return await self._undoing.to_its_end(self._drop_all([site for site in sites if site is not None]))

    async def drop_stuck(self) -> set[str]:
        """Tries once more to drop what had to stay; nothing, since no database is in another's way."""
        return set()

    async def wake(self, plan: Plan, others: Sequence[str]) -> BuiltSet | None:
        """A set that an earlier run has kept; None, since databases of sets are not kept."""
        return None

    async def retire(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Says that the run needs these sets no more; drops them."""
        return await self.drop(sets)

    async def close(self) -> None:
        """Closes the connections, after what is being undone. What was built and not dropped stays."""
        await self._undoing.idle()
        for site in tuple(self._open):
            await site.close()

    async def _build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        self._take_seats()
        run = self._common.run
        database = names.database_name(run=run.id, worker=run.worker, number=next(self._numbers))
        pool = self._open_pool(database)
        somebody = visitors.anybody(run.id, pool.application_name, idle=self._budget.idle)
        site = Site(self._common, database, pool, proof=None, unless=somebody)
        self._open.add(site)
        built = await self._undoing.do(self._make(site, plan, others), lambda error: self._undo(site, error))
        self._sites[built] = site
        return built

    def _take_seats(self) -> None:
        """Each database has a connection of the share, and so has what makes them where that is another one."""
        if not self._seated:
            self._seated = True
            self._pools.seats.reserve(self._budget.databases + self._common.endpoint.own)

    async def _make(self, site: Site, plan: Plan, others: Sequence[str]) -> BuiltSet:
        await self._databases.create(site.database, plan.names)
        schemas = {service: names.real_name(service) for service in plan.names}
        return await site.build(plan, schemas, others)

    async def _undo(self, site: Site, error: BaseException) -> None:
        tell_what_stays(error, await self._drop(site))

    async def _drop_all(self, sites: Sequence[Site]) -> tuple[list[Kept], list[Holder]]:
        kept: list[Kept] = []
        holders: list[Holder] = []
        for site in sites:
            holders += await self._empty_if_possible(site)
            kept += await self._drop(site)
        return kept, holders

    async def _drop(self, site: Site) -> list[Kept]:
        self._open.discard(site)
        await site.close()
        self._pools.give_up(site.pool)
        if site in self._lost:
            self._lost.remove(site)
            return []
        return await self._databases.drop(site.database)

    def _lose(self) -> None:
        """What was made by now is not this process's any more."""
        self._lost = set(self._open)

    async def _empty(self, site: Site) -> list[Holder]:
        async with site.admin.resetter() as connection:
            pool, idle = site.pool.application_name, self._budget.idle
            return await visitors.end(connection, self._common.run.id, pool, idle=idle, pooled=self._pooled)

    async def _empty_if_possible(self, site: Site) -> list[Holder]:
        try:
            return await self._empty(site)
        except FAILURES:
            return []  # the drop tells
