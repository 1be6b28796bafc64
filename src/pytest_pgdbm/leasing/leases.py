"""Who has which sets of schemas now; how a set comes to a test and how it is given back.

A tenant is a test, or the class, module, package or session that a wider fixture belongs to. What its fixtures'
teardown does is revoke the managers. Looking for leaks and resetting wait until everything of the test has been torn
down, its event loop included, so that the order of the user's fixtures makes no difference. The next test does not
wait for a reset; what a reset finds is told later, and names the test that left it.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import Sequence

from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.leasing.leaks import Leak, describe
from pytest_pgdbm.leasing.stock import Stock
from pytest_pgdbm.leasing.tenants import Leased, Tenant
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet, Plan


class Leases:
    """The sets of this process: leased, given back and not looked at yet, or kept for the next test."""

    def __init__(self, home: Home, pool: SharedPool) -> None:
        self._home = home
        self._pool = pool
        self._names: dict[str, str] = {}
        self._stocks: dict[tuple[object, ...], Stock] = {}
        self._returned: list[tuple[Term, Leased]] = []
        self._returning: set[asyncio.Task[None]] = set()
        self._late: list[Leak] = []
        self.dropped: list[str] = []
        """Which tests' sets could not be leased again, and why."""

    def lease_now(self, tenant: Tenant, plan: Plan, others: Sequence[str]) -> dict[str, Database] | None:
        """As `lease`, from any thread and at once; None if there is something to wait for."""
        tenant.term.check()
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
                leased = await self._new(tenant, plan, others)
                tenant.sets[(*plan.key, len(tenant.sets)) if fresh else plan.key] = leased
            return leased.managers

    @property
    def schemas(self) -> tuple[str, ...]:
        """The schemas that are leased now."""
        return tuple(self._names.values())

    def revoke(self, tenant: Tenant) -> None:
        """Ends the tenant's term: its managers refuse from now on, its sets wait for `settle`."""
        tenant.term.ended = True
        for leased in tenant.sets.values():
            self._returned.append((tenant.term, leased))
            for service, schema in leased.built.schemas.items():
                if self._names.get(service) == schema:
                    del self._names[service]
        tenant.sets.clear()

    @property
    def unsettled(self) -> bool:
        """Whether anything was given back, left behind or found that `settle` has not told."""
        return bool(self._returned) or bool(self._late) or self._pool.lost

    @property
    def may_settle_later(self) -> bool:
        """Whether all that `settle` has to do is to make sets ready for tests to come."""
        if self._pool.lost or self._late or self._pool.is_out_for({term for term, _ in self._returned}):
            return False
        return all(leased.stock is not None for _, leased in self._returned)

    async def settle(self) -> list[Leak]:
        """Has sets made ready for the next tests, without waiting for it, and drops those that are not leased again.

        Returns what was found wrong, now or since the last time. To be run in the private loop.
        """
        returned, self._returned = self._returned, []
        out = await self._pool.take_lost({term for term, _ in returned})
        for term, leased in returned:
            if leased.stock is not None:
                self._give_back(term, leased.built, leased.stock)
        tests = sorted({term.test for term, _ in returned})
        kept, holders = await self._home.drop([leased.built for _, leased in returned if leased.stock is None])
        late, self._late = self._late, []
        return late + describe(tests, out, holders, kept)

    async def clear(self) -> list[Leak]:
        """As `settle`, and drops all that is not leased; returns what was found wrong."""
        found = await self.settle()
        while self._returning:
            await asyncio.wait(self._returning)
        found += self._late
        for stock in self._stocks.values():
            kept, holders = await stock.clear()
            found += describe(["the run"], (), holders, kept)
        self._stocks.clear()
        return found

    def _give_back(self, term: Term, built: BuiltSet, stock: Stock) -> None:
        coming = stock.give_back(built)

        async def tell() -> None:
            outcome = await coming
            self._late += describe([term.test], (), outcome.holders, outcome.kept)
            if outcome.why:
                self.dropped.append(f"{term.test}: {outcome.why}")

        task = asyncio.ensure_future(tell())
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _new(self, tenant: Tenant, plan: Plan, others: Sequence[str]) -> Leased:
        stock = self._stock(plan, others) if tenant.reuse else None
        built = await (stock.take() if stock else self._home.build(plan, others))
        return self._leased(tenant, built, stock)

    def _leased(self, tenant: Tenant, built: BuiltSet, stock: Stock | None) -> Leased:
        # Asked for in one test, any service can be named in the SQL of another, tied or not.
        names = ChainMap(dict(built.schemas), self._names)
        managers = self._home.managers(built, tenant.term, names, tenant.path)
        self._names.update(built.schemas)
        return Leased(built, managers, stock)

    def _stock(self, plan: Plan, others: Sequence[str]) -> Stock:
        if plan.key not in self._stocks:
            self._stocks[plan.key] = Stock(self._home, plan, others)
        return self._stocks[plan.key]
