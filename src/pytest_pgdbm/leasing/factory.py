"""What `pgdbm_db` is in a test: a callable that leases sets, from inside an event loop or without one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pytest_pgdbm.connections.loop import running_loop
from pytest_pgdbm.ground.errors import ConfigError, PgdbmError, plainly
from pytest_pgdbm.leasing.resolver import Asked, Resolver
from pytest_pgdbm.services.declarations import Declaration, check_name

if TYPE_CHECKING:
    from pytest_pgdbm.connections.manager import Database
    from pytest_pgdbm.leasing.tenants import Tenant
    from pytest_pgdbm.services.service import PathLike, Seed
    from pytest_pgdbm.session import Session

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Lease(Generic[T_co]):
    """What `pgdbm_db("users")` returns: `await` it in an asynchronous test, or call `.get()` in a synchronous one."""

    def __init__(
        self,
        factory: DatabaseFactory,
        asked: Sequence[Asked],
        give: Callable[[Mapping[str, Database]], T_co],
        *,
        fresh: bool,
        own: bool,
    ) -> None:
        self._factory = factory
        self._asked = asked
        self._give = give
        self._fresh = fresh
        self._own = own

    def __await__(self) -> Generator[Any, None, T_co]:
        """What was asked for: a manager, or a tuple of them in the order asked. The event loop goes on meanwhile."""
        __tracebackhide__ = True
        return self._wait().__await__()

    def get(self) -> T_co:
        """The same, without an event loop: blocks until it is there."""
        __tracebackhide__ = True
        try:
            managers = self._lease_now()
            if managers is None:
                self._factory.begin()
                managers = self._factory.session.loop.run(self._lease())
        except PgdbmError as error:
            raise plainly(error) from None
        return self._give(managers)

    async def _wait(self) -> T_co:
        __tracebackhide__ = True
        running_loop()
        try:
            managers = self._lease_now()
            if managers is None:
                # Starting a server takes a second; the test's loop has other tasks to run.
                await asyncio.to_thread(self._factory.begin)
                managers = await self._factory.session.loop.wait(self._lease())
        except PgdbmError as error:
            raise plainly(error) from None
        return self._give(managers)

    async def _lease(self) -> Mapping[str, Database]:
        managers: dict[str, Database] = {}
        for asked in self._asked:
            if not managers.keys() >= set(asked.names):
                managers.update(await self._factory.lease(asked, fresh=self._fresh, own=self._own))
        return managers

    def _lease_now(self) -> Mapping[str, Database] | None:
        if self._fresh:
            return None
        managers: dict[str, Database] = {}
        for asked in self._asked:
            at_once = self._factory.lease_now(asked, own=self._own)
            if at_once is None:
                return None
            managers.update(at_once)
        return managers

    if not TYPE_CHECKING:  # a checker is to find the attributes that a lease has not

        def __getattr__(self, name: str) -> Any:
            """Is asked for what is not here: of what comes, as a rule, by somebody who forgot to wait for it."""
            plain = f"{type(self).__name__!r} object has no attribute {name!r}"
            if not name.startswith("_"):
                plain += (
                    "; what has it comes of awaiting this object, as in 'db = await pgdbm_db(…)', or in a synchronous"
                    " test of its get(), as in 'db = pgdbm_db(…).get()'"
                )
            raise AttributeError(plain, name=name, obj=self)


class DatabaseFactory:
    """Leases services' schemas to one test, or to one wider scope.

    `await pgdbm_db("users")` gives a `Database` on a freshly migrated schema, the same one however often the test asks;
    `pgdbm_db("users", "orders")` a tuple; `pgdbm_db()` the only service there is. `fresh=True` gives another,
    new one. `migrations=` and `seed=` say, for this test, what a declaration in a conftest says for all.
    """

    def __init__(
        self,
        session: Session,
        tenant: Tenant,
        resolver: Resolver,
        hosts: Callable[[], Iterable[Tenant]],
    ) -> None:
        self.session = session
        self.tenant = tenant
        self._resolver = resolver
        self._hosts = hosts

    @overload
    def __call__(
        self,
        service: str = ...,
        /,
        *,
        fresh: bool = ...,
        migrations: PathLike | None = ...,
        seed: Seed | Sequence[Seed] | None = ...,
    ) -> Lease[Database]: ...

    @overload
    def __call__(self, first: str, second: str, /, *more: str, fresh: bool = ...) -> Lease[tuple[Database, ...]]: ...

    def __call__(
        self,
        *services: str,
        fresh: bool = False,
        migrations: PathLike | None = None,
        seed: Seed | Sequence[Seed] | None = None,
    ) -> Lease[Any]:
        """Asks for services; see the class. Raises UnknownService for one that is declared nowhere."""
        __tracebackhide__ = True
        asked: Sequence[str | Declaration | None]
        try:
            if migrations is None and seed is None:
                asked = _names(services)
            else:
                asked = [_declaration(services, sys._getframe(1), migrations, seed)]
        except ConfigError as error:
            raise plainly(error) from None
        return self.ask(asked, fresh=fresh)

    def ask(self, asked: Sequence[str | Declaration | None], *, fresh: bool = False, own: bool = False) -> Lease[Any]:
        """As calling it, with declarations where a name does not say enough.

        `own` is for a fixture, which gives a service that a wider fixture of the test gives too from a set of its own.
        """
        __tracebackhide__ = True
        try:
            plans = [self._resolver.ask(each, self.tenant.isolation) for each in asked]
        except PgdbmError as error:
            raise plainly(error) from None
        names = [name for each in plans for name in each.names]

        def one_or_all(managers: Mapping[str, Database]) -> Any:
            found = tuple(managers[name] for name in names)
            return found[0] if len(found) == 1 else found

        return Lease(self, plans, one_or_all, fresh=fresh, own=own)

    def ask_database(
        self,
        services: Sequence[str],
        give: Callable[[Mapping[str, Database]], T],
        *,
        fresh: bool = False,
        own: bool = False,
    ) -> Lease[T]:
        """A lease of a whole database; `give` makes of its managers what the caller gets."""
        __tracebackhide__ = True
        try:
            asked = self._resolver.ask_database(services)
        except PgdbmError as error:
            raise plainly(error) from None
        return Lease(self, [asked], give, fresh=fresh, own=own)

    def begin(self) -> None:
        """Starts the server, if nobody has."""
        self.session.prepare()

    async def lease(self, asked: Asked, *, fresh: bool, own: bool) -> dict[str, Database]:
        """The managers of the set that the service belongs to; to be run in the private loop."""
        hosted = None if fresh else self._hosted(asked, own)
        if hosted is not None:
            return hosted
        self.tenant.services.update(asked.names)
        return dict(await self.session.lease(self.tenant, asked.plan, asked.others, fresh=fresh))

    def lease_now(self, asked: Asked, *, own: bool) -> Mapping[str, Database] | None:
        """The same, if it is there; from any thread."""
        hosted = self._hosted(asked, own)
        if hosted is not None:
            return hosted
        managers = self.session.lease_now(self.tenant, asked.plan, asked.others)
        if managers is not None:
            self.tenant.services.update(asked.names)
        return managers

    def _hosted(self, asked: Asked, own: bool) -> dict[str, Database] | None:
        """The set of a wider fixture that the test uses as well."""
        for host in self._hosts():
            if asked.plan.key in host.sets and not (own and host.services.issuperset(asked.names)):
                return host.sets[asked.plan.key].managers
        return None


def _names(services: Sequence[str]) -> Sequence[str | None]:
    for name in services:
        check_name(name, "pgdbm_db")
    return services or (None,)


def _declaration(
    services: Sequence[str], caller: FrameType, migrations: PathLike | None, seed: Seed | Sequence[Seed] | None
) -> Declaration:
    if len(services) > 1:
        raise ConfigError("pgdbm_db(): migrations= and seed= belong to one service; ask for each by itself")
    return Declaration(
        name=services[0] if services else None,
        origin=Path(caller.f_code.co_filename),
        line=caller.f_lineno,
        migrations=migrations,
        seed=seed,
    )
