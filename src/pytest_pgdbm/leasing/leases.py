"""Who has which sets of schemas now; how a set comes to a test and how it is given back.

A tenant is a test, or the class, module, package or session that a wider fixture belongs to. What its fixtures'
teardown does is revoke the managers. Looking for leaks and dropping wait until everything of the test has been torn
down, its event loop included, so that the order of the user's fixtures makes no difference.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.leasing.leaks import Leak, describe
from pytest_pgdbm.leasing.tenants import Leased, Tenant
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet, Plan


class Leases:
    """The sets of this process that are leased, and those that were given back and wait to be dropped."""

    def __init__(self, home: Home, pool: SharedPool) -> None:
        self._home = home
        self._pool = pool
        self._names: dict[str, str] = {}
        self._returned: list[tuple[Term, BuiltSet]] = []

    async def lease(
        self, tenant: Tenant, plan: Plan, others: Sequence[str], *, fresh: bool = False
    ) -> dict[str, Database]:
        """The managers of a set, by service: of the set that the tenant has, or of a new one.

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
            self._returned.append((tenant.term, leased.built))
            for service, schema in leased.built.schemas.items():
                if self._names.get(service) == schema:
                    del self._names[service]
        tenant.sets.clear()

    @property
    def unsettled(self) -> bool:
        """Whether anything was given back, or left behind, that `settle` has not seen."""
        return bool(self._returned) or self._pool.lost

    async def settle(self) -> list[Leak]:
        """Drops what was given back; returns what was found wrong. To be run in the private loop."""
        returned, self._returned = self._returned, []
        tests = sorted({term.test for term, _ in returned})
        out = await self._pool.take_lost({term for term, _ in returned})
        kept, holders = await self._home.drop([built for _, built in returned])
        return describe(tests, out, holders, kept)

    async def _new(self, tenant: Tenant, plan: Plan, others: Sequence[str]) -> Leased:
        built = await self._home.build(plan, others)
        # Asked for in one test, any service can be named in the SQL of another, tied or not.
        names = ChainMap(dict(built.schemas), self._names)
        managers = self._home.managers(built, tenant.term, names, tenant.path)
        self._names.update(built.schemas)
        return Leased(built, managers)
