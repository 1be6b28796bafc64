"""Who has which sets of schemas now; how a set comes to a test and how it is given back.

A tenant is a test, or the class, module, package or session that a wider fixture belongs to. What its fixtures'
teardown does is revoke the managers. Looking for leaks and resetting wait until everything of the test has been torn
down, its event loop included, so that the order of the user's fixtures makes no difference. The next test does not
wait for a reset; what a reset finds is told later, and names the test that left it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.pool_set import Pools
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.connections.terms import LOSS, Term
from pytest_pgdbm.leasing.leaks import Leak, describe
from pytest_pgdbm.leasing.stock import AnyHome, Outcome, Stock
from pytest_pgdbm.leasing.tenants import Leased, Tenant
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.settings import Isolation

Post = Callable[[Coroutine[Any, Any, object]], None]


class Leases:
    """The sets of this process: leased, given back and not looked at yet, or kept for the next test.

    `post` has something done in the private loop, without waiting for it.
    """

    def __init__(self, homes: Mapping[Isolation, AnyHome], pools: Pools, post: Post) -> None:
        self._homes = homes
        self._post = post
        self._pools = pools
        self._names: dict[str, str] = {}
        self._leased_now: dict[BuiltSet, Term] = {}
        self._stocks: dict[tuple[object, ...], Stock] = {}
        self._returned: list[tuple[Term, Leased]] = []
        self._returning: set[asyncio.Task[Any]] = set()
        self._late: list[Leak] = []
        self._writing: set[int] = set()
        self._lock = threading.Lock()  # threads of a test may ask at once, and all may be lost meanwhile
        self.dropped: list[str] = []
        """Which tests' sets could not be leased again, and why."""
        self.gone: set[str] = set()
        """Schemas that had to stay, and were dropped later."""

    def lease_now(self, tenant: Tenant, plan: Plan, others: Sequence[str]) -> dict[str, Database] | None:
        """As `lease`, from any thread and at once; None if there is something to wait for."""
        tenant.term.check()
        with self._lock:
            leased = tenant.sets.get(plan.key)
            if leased is None and tenant.reuse and not tenant.turn.locked():
                stock = self._stock(plan, others)
                built = stock.take_now()
                if built is not None:
                    leased = tenant.sets[plan.key] = self._leased(tenant, built, stock)
        return None if leased is None else leased.managers

    async def lease(
        self, tenant: Tenant, plan: Plan, others: Sequence[str], *, fresh: bool = False
    ) -> dict[str, Database]:
        """The managers of a set, by service: of the set that the tenant has, or of another one.

        To be run in the private loop. Raises BuildError.
        """
        async with tenant.turn:
            tenant.term.check()
            leased = None if fresh else tenant.sets.get(plan.key)
            if leased is None:
                leased = await self._new(tenant, plan, others, fresh=fresh)
            return leased.managers

    @property
    def schemas(self) -> dict[str, list[str]]:
        """The schemas that are leased now, by database."""
        found: dict[str, list[str]] = {}
        for built in sorted(self._leased_now, key=lambda each: list(each.schemas.values())):
            found.setdefault(built.database, []).extend(built.schemas.values())
        return found

    def revoke(self, tenant: Tenant) -> None:
        """Ends the tenant's term: its managers refuse from now on, its sets wait for `settle`."""
        tenant.term.end()
        for leased in tenant.sets.values():
            self._returned.append((tenant.term, leased))
            self._leased_now.pop(leased.built, None)
            for service, schema in leased.built.schemas.items():
                if self._names.get(service) == schema:
                    del self._names[service]
        tenant.sets.clear()

    def lose(self) -> None:
        """Gives up all sets, since they are not this process's any more; the tests that have some fail."""
        with self._lock:
            for term in self._leased_now.values():
                term.lost = True
            for home in self._homes.values():
                self._comes(asyncio.ensure_future(_drop(home, self._lose_waiting(home))))
        self.dropped.append(f"those that were there: {LOSS}")

    @property
    def unsettled(self) -> bool:
        """Whether anything was given back, left behind or found that `settle` has not told."""
        return bool(self._returned) or bool(self._late) or self._pools.lost or self._is_given_up

    @property
    def may_settle_later(self) -> bool:
        """Whether all that `settle` has to do is to make sets ready for tests to come."""
        terms, ended = _terms(self._returned), self._own_pools(self._returned)
        if self._pools.lost or self._late or self._is_given_up or self._pools.is_out_for(terms, ended):
            return False
        return all(leased.stock is not None for _, leased in self._returned)

    def settle_later(self) -> None:
        """As `settle`, where it may be later: nobody waits for it or is told now. From any thread."""
        returned, self._returned = self._returned, []
        try:
            for (term, _), sets in _by_term(returned).items():
                _Together(sets, partial(self._goes_on, term)).begin(term)
        except BaseException:  # an interruption: of some nobody knows whether they were begun
            for home in self._homes.values():
                home.give_up()
            for stock, built in (each for sets in _by_term(returned).values() for each in sets):
                stock.abandon(built)
            raise
        for home in self._homes.values():
            home.go_on()

    async def lose_given_up(self) -> None:
        """Has those be lost at once that are given up: no later test is to lease them before."""
        for home in self._homes.values():
            if home.is_given_up:
                await home.finish()
                with self._lock:
                    waiting = self._lose_waiting(home)
                await _drop(home, waiting)

    async def settle(self) -> list[Leak]:
        """Has sets made ready for the next tests, without waiting for it, and drops those that are not leased again.

        Returns what was found wrong, now or since the last time. To be run in the private loop.
        """
        await self.lose_given_up()
        returned = tuple(self._returned)
        out = await self._pools.take_lost(_terms(returned), self._own_pools(returned))
        del self._returned[: len(returned)]
        for (term, _), sets in _by_term(returned).items():
            self._give_back(term, [Left(stock, built) for stock, built in sets])
        tests = sorted({term.test for term, _ in returned})
        found = describe(tests, out, (), ())
        for isolation, home in self._homes.items():
            going = [
                each.built for _, each in returned if each.stock is None and each.built.plan.isolation == isolation
            ]
            kept, holders = await home.drop(going)
            found += describe(tests, (), holders, kept)
        late, self._late = self._late, []
        return late + found

    async def clear(self) -> list[Leak]:
        """As `settle`, and drops all that is not leased; returns what was found wrong."""
        found = await self.settle()
        for stock in tuple(self._stocks.values()):
            await stock.finish()
        while self._returning:
            await asyncio.wait(self._returning)
        found += self._late
        for stock in tuple(self._stocks.values()):
            kept, holders = await stock.clear()
            found += describe(["the run"], (), holders, kept)
        self._stocks.clear()
        await self._drop_stuck()
        return found

    def _lose_waiting(self, home: AnyHome) -> list[BuiltSet]:
        """Gives up the sets of one home; returns those that nobody has."""
        return [built for stock in self._stocks.values() if stock.home is home for built in stock.lose()]

    @property
    def _is_given_up(self) -> bool:
        return any(home.is_given_up for home in self._homes.values())

    def _goes_on(self, term: Term, left: Sequence[Left]) -> None:
        async def go_on() -> None:
            self._give_back(term, left)

        self._post(go_on())

    def _give_back(self, term: Term, left: Sequence[Left]) -> None:
        coming = [each.stock.give_back(each.built, term.over, each.found) for each in left]
        if coming:
            self._comes(asyncio.ensure_future(self._tell(term, coming)))

    def _comes(self, task: asyncio.Task[Any]) -> None:
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _tell(self, term: Term, coming: Sequence[asyncio.Task[Outcome]]) -> None:
        """Notes what came of the sets of a test."""
        outcomes = await asyncio.gather(*coming)
        kept = [each for outcome in outcomes for each in outcome.kept]
        if kept and len(coming) > 1:
            await self._drop_stuck()
            kept = [each for each in kept if each.name not in self.gone]
        holders = [each for outcome in outcomes for each in outcome.holders]
        holders = [each for each in holders if not each.writing or each.pid not in self._writing]
        # One that goes on is in the way of later tests, too, and not theirs.
        self._writing.update(each.pid for each in holders if each.writing)
        self._late += describe([term.test], (), holders, kept)
        self.dropped += [f"{term.test}: {outcome.why}" for outcome in outcomes if outcome.why]

    async def _drop_stuck(self) -> None:
        for home in self._homes.values():
            self.gone |= await home.drop_stuck()

    async def _new(self, tenant: Tenant, plan: Plan, others: Sequence[str], *, fresh: bool) -> Leased:
        with self._lock:
            stock = self._stock(plan, others) if tenant.reuse else None
        if stock is not None:
            await self._make_room(stock)
        built = await (stock.take() if stock else self._homes[plan.isolation].build(plan, others))
        with self._lock:
            leased = None if fresh else tenant.sets.get(plan.key)
            if leased is None:
                leased = self._leased(tenant, built, stock)
                tenant.sets[(*plan.key, len(tenant.sets)) if fresh else plan.key] = leased
            elif stock is not None:  # another thread of the test's has been faster
                stock.give_back(built)
        return leased

    def _leased(self, tenant: Tenant, built: BuiltSet, stock: Stock | None) -> Leased:
        names: Mapping[str, str] = built.schemas
        if built.plan.isolation == "schema":
            # Asked for in one test, any service can be named in the SQL of another, tied or not.
            names = ChainMap(dict(built.schemas), self._names)
            self._names.update(built.schemas)
        self._leased_now[built] = tenant.term
        managers = self._homes[built.plan.isolation].managers(built, tenant.term, names, tenant.path)
        return Leased(built, managers, stock)

    def _stock(self, plan: Plan, others: Sequence[str]) -> Stock:
        """The stock of this content, which is now the one that was asked last."""
        stock = self._stocks.pop(plan.key, None) or Stock(self._homes[plan.isolation], plan, others)
        self._stocks[plan.key] = stock
        return stock

    async def _make_room(self, stock: Stock) -> None:
        """Has a set go that was not asked for longest, where a home is full and this stock has to build one."""
        for other in list(self._stocks.values()):
            if not stock.must_build or not stock.home.is_full:
                break
            if other is not stock and other.home is stock.home:
                kept, holders = await other.drop_one()
                self._late += describe(["the run"], (), holders, kept)

    def _own_pools(self, returned: Sequence[tuple[Term, Leased]]) -> set[SharedPool]:
        """The pools that have been these sets' alone."""
        pools = (self._homes[each.built.plan.isolation].own_pool(each.built) for _, each in returned)
        return {pool for pool in pools if pool is not None}


class Left(NamedTuple):
    """A set that is to be given back, or to go on with that: with what was found in it."""

    stock: Stock
    built: BuiltSet
    found: Found | None = None


class _Together:
    """The sets of one test. Those that do not come back by themselves `go_on` together: the test may have tied them."""

    def __init__(self, sets: Sequence[tuple[Stock, BuiltSet]], go_on: Callable[[Sequence[Left]], None]) -> None:
        self._sets = sets
        self._go_on = go_on
        self._coming = len(sets)
        self._left: list[Left] = []
        self._turn = threading.Lock()

    def begin(self, term: Term) -> None:
        """Has all come back that can."""
        over = time.monotonic() if term.over is None else term.over
        for stock, built in self._sets:
            if not stock.begin(built, over, partial(self._came, stock, built)):
                self._came(stock, built, False, None)

    def _came(self, stock: Stock, built: BuiltSet, as_it_was: bool, found: Found | None) -> None:
        with self._turn:  # some come in the private loop, while others of them are begun
            self._coming -= 1
            if not as_it_was:
                self._left.append(Left(stock, built, found))
            last = not self._coming
        if last and self._left:
            self._go_on(self._left)


async def _drop(home: AnyHome, sets: Sequence[BuiltSet]) -> None:
    with quietly():
        await home.drop(sets)


def _by_term(returned: Sequence[tuple[Term, Leased]]) -> dict[tuple[Term, AnyHome], list[tuple[Stock, BuiltSet]]]:
    """What is to be leased again, by whose it was and where it lives: a test can tie what is in one database."""
    found: dict[tuple[Term, AnyHome], list[tuple[Stock, BuiltSet]]] = {}
    for term, leased in returned:
        if leased.stock is not None:
            found.setdefault((term, leased.stock.home), []).append((leased.stock, leased.built))
    return found


def _terms(returned: Sequence[tuple[Term, Leased]]) -> set[Term]:
    return {term for term, _ in returned}
