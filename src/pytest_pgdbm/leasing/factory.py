"""What `pgdbm_db` is in a test: a callable that leases sets, from inside an event loop or without one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from pytest_pgdbm.connections.loop import running_loop
from pytest_pgdbm.ground.errors import ConfigError, PgdbmError
from pytest_pgdbm.leasing.resolver import Asked, Resolver
from pytest_pgdbm.services.declarations import Declaration

if TYPE_CHECKING:
    from pytest_pgdbm.connections.manager import Database
    from pytest_pgdbm.leasing.tenants import Tenant
    from pytest_pgdbm.services.service import PathLike, Seed
    from pytest_pgdbm.session import Session

T_co = TypeVar("T_co", covariant=True)


class Lease(Generic[T_co]):
    """What `pgdbm_db("users")` returns: `await` it in an asynchronous test, or call `.get()` in a synchronous one."""

    def __init__(self, factory: DatabaseFactory, asked: Sequence[Asked], *, fresh: bool, own: bool) -> None:
        self._factory = factory
        self._asked = asked
        self._fresh = fresh
        self._own = own

    def __await__(self) -> Generator[Any, None, T_co]:
        """The manager, or a tuple of them in the order asked for. The event loop goes on meanwhile."""
        __tracebackhide__ = True
        return self._wait().__await__()

    def get(self) -> T_co:
        """The same, without an event loop: blocks until it is there."""
        __tracebackhide__ = True
        try:
            at_once = self._lease_now()
            if at_once is not None:
                return self._one_or_all(at_once)
            self._factory.begin()
            managers = self._factory.session.loop.run(self._lease())
        except PgdbmError as error:
            raise _plainly(error) from None
        return self._one_or_all(managers)

    async def _wait(self) -> T_co:
        __tracebackhide__ = True
        running_loop()
        try:
            at_once = self._lease_now()
            if at_once is not None:
                return self._one_or_all(at_once)
            # Starting a server takes a second; the test's loop has other tasks to run.
            await asyncio.to_thread(self._factory.begin)
            managers = await self._factory.session.loop.wait(self._lease())
        except PgdbmError as error:
            raise _plainly(error) from None
        return self._one_or_all(managers)

    async def _lease(self) -> tuple[Database, ...]:
        managers: dict[str, Database] = {}
        for asked in self._asked:
            if asked.name not in managers:
                managers.update(await self._factory.lease(asked, fresh=self._fresh, own=self._own))
        return tuple(managers[asked.name] for asked in self._asked)

    def _lease_now(self) -> tuple[Database, ...] | None:
        if self._fresh:
            return None
        managers: dict[str, Database] = {}
        for asked in self._asked:
            at_once = self._factory.lease_now(asked, own=self._own)
            if at_once is None:
                return None
            managers.update(at_once)
        return tuple(managers[asked.name] for asked in self._asked)

    def _one_or_all(self, managers: tuple[Database, ...]) -> T_co:
        return cast("T_co", managers[0] if len(managers) == 1 else managers)


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
        if migrations is None and seed is None:
            return self.ask(services or (None,), fresh=fresh)
        if len(services) > 1:
            raise ConfigError("pgdbm_db(): migrations= and seed= belong to one service; ask for each by itself")
        caller = sys._getframe(1)
        declaration = Declaration(
            name=services[0] if services else None,
            origin=Path(caller.f_code.co_filename),
            line=caller.f_lineno,
            migrations=migrations,
            seed=seed,
        )
        return self.ask((declaration,), fresh=fresh)

    def ask(self, asked: Sequence[str | Declaration | None], *, fresh: bool = False, own: bool = False) -> Lease[Any]:
        """As calling it, with declarations where a name does not say enough.

        `own` is for a fixture, which gives a service that a wider fixture of the test gives too from a set of its own.
        """
        __tracebackhide__ = True
        try:
            return Lease(self, [self._resolver.ask(each) for each in asked], fresh=fresh, own=own)
        except PgdbmError as error:
            raise _plainly(error) from None

    def begin(self) -> None:
        """Starts the server, if nobody has."""
        self.session.prepare()

    async def lease(self, asked: Asked, *, fresh: bool, own: bool) -> dict[str, Database]:
        """The managers of the set that the service belongs to; to be run in the private loop."""
        hosted = None if fresh else self._hosted(asked, own)
        if hosted is not None:
            return hosted
        self.tenant.services.add(asked.name)
        return dict(await self.session.lease(self.tenant, asked.plan, asked.others, fresh=fresh))

    def lease_now(self, asked: Asked, *, own: bool) -> Mapping[str, Database] | None:
        """The same, if it is there; from any thread."""
        hosted = self._hosted(asked, own)
        if hosted is not None:
            return hosted
        managers = self.session.lease_now(self.tenant, asked.plan, asked.others)
        if managers is not None:
            self.tenant.services.add(asked.name)
        return managers

    def _hosted(self, asked: Asked, own: bool) -> dict[str, Database] | None:
        """The set of a wider fixture that the test uses as well."""
        for host in self._hosts():
            if asked.plan.key in host.sets and not (own and asked.name in host.services):
                return host.sets[asked.plan.key].managers
        return None


def _plainly(error: PgdbmError) -> PgdbmError:
    """The error without the plugin's own frames: its message says all, and the test's line is what matters."""
    return error.with_traceback(None)
