"""The composition root: one object per process that wires server, pool, schemas and leases, each at its first use.

It knows no pytest type; the edge asks it for things and tells it when a test is over.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.ground.errors import PgdbmError, ServerGone, SharedFailure

if TYPE_CHECKING:
    from pytest_pgdbm.connections.admin import Admin
    from pytest_pgdbm.connections.backends import Activity
    from pytest_pgdbm.connections.budget import Budget
    from pytest_pgdbm.connections.crowd import Crowd
    from pytest_pgdbm.connections.loop import PrivateLoop
    from pytest_pgdbm.connections.manager import Database
    from pytest_pgdbm.connections.path import SearchPath
    from pytest_pgdbm.connections.pool_set import Pools
    from pytest_pgdbm.connections.pools import SharedPool
    from pytest_pgdbm.connections.seats import Seats
    from pytest_pgdbm.connections.turns import Turns
    from pytest_pgdbm.ground.endpoint import Endpoint, PgdbmServer
    from pytest_pgdbm.ground.records import Run
    from pytest_pgdbm.keeper import Holding
    from pytest_pgdbm.leasing.leaks import Leak
    from pytest_pgdbm.leasing.leases import Leases
    from pytest_pgdbm.leasing.stock import AnyHome
    from pytest_pgdbm.leasing.tenants import Tenant
    from pytest_pgdbm.schemas.database_home import DatabaseHome
    from pytest_pgdbm.schemas.home import Home
    from pytest_pgdbm.schemas.plan import Plan
    from pytest_pgdbm.schemas.site import Common
    from pytest_pgdbm.schemas.sweeper import Sweeper
    from pytest_pgdbm.schemas.workers_database import WorkersDatabase
    from pytest_pgdbm.settings import Isolation, Settings

SECONDS_FOR_A_SERVER = 300.0
"""How long a process waits for another one that starts the run's server; pulling an image takes its time."""

_UNTIMED: Mapping[str, Any] = {
    "statement_timeout_ms": None,
    "idle_in_transaction_session_timeout_ms": None,
    "lock_timeout_ms": None,
    "command_timeout": 86400.0,
}


class Session:
    """What one process of a run has of the plugin. Nothing is started until it is asked for.

    `find_run` tells which run that is, once something of it is needed.
    `pool_options` are what the application gives its pool; `needed_extensions` tells which extensions the tests will
    need, as far as that is known: it decides which installation is taken. `debugged` takes the time limits from the
    pool, since a person may look at a test that stands still. `failure` is why there is no server, `test` the test
    that runs now, `waits` what is to be told of waits for a connection.
    """

    def __init__(self, settings: Settings, find_run: Callable[[], Run]) -> None:
        self.settings = settings
        self._find_run = find_run
        self.pool_options: Mapping[str, Any] = {}
        self.needed_extensions: Callable[[], Collection[str]] = tuple
        self.debugged = False
        self.failure: str | None = None
        self.test = ""
        self.waits: list[str] = []
        self._turn = threading.Lock()
        self._closers: list[Callable[[], None]] = []
        self._parents: list[object] = []

    @cached_property
    def run(self) -> Run:
        """The run, and which of its processes this is."""
        return self._find_run()

    @cached_property
    def server(self) -> PgdbmServer:
        """The run's server, as users see it. Raises NoServer, once with the whole story."""
        from pytest_pgdbm.ground.endpoint import PgdbmServer
        from pytest_pgdbm.ground.masks import SecretUrl

        endpoint = self._get_endpoint()
        return PgdbmServer(
            kind=endpoint.kind,
            version=endpoint.version,
            host=endpoint.host,
            port=endpoint.port,
            user=endpoint.login.user,
            database=self._database,
            url=SecretUrl(endpoint.url_for(self._database)),
        )

    @cached_property
    def pool(self) -> SharedPool:
        """The run's pool: one object, with a real pool in each event loop."""
        return self._open_pool(self._database)

    async def lease(self, tenant: Tenant, plan: Plan, others: Sequence[str], *, fresh: bool) -> Mapping[str, Database]:
        """The managers of a set for this tenant; to be run in the private loop."""
        self._check_path(tenant)
        async with self._pools.seats.kept():
            return await self._leases.lease(tenant, plan, others, fresh=fresh)

    def lease_now(self, tenant: Tenant, plan: Plan, others: Sequence[str]) -> Mapping[str, Database] | None:
        """The same, if it is there: without waiting, from any thread."""
        if "_leases" not in self.__dict__:
            return None
        self._check_path(tenant)
        return self._leases.lease_now(tenant, plan, others)

    def prepare(self) -> None:
        """Starts the server and what stands on it, if that has not been done; from any thread."""
        from pytest_pgdbm.ground.garbage import uncollected

        with self._turn, uncollected():
            self._get_endpoint()
            _ = self._leases

    def psql(self) -> list[str]:
        """The `psql` commands for the schemas that are leased now, one for each database."""
        if "_leases" not in self.__dict__:
            return []
        from pytest_pgdbm.connections import psql

        leased = self._leases.schemas.items()
        return [psql.command(self._get_endpoint(), at, self.run.folder, schemas) for at, schemas in leased]

    @property
    def version(self) -> str | None:
        """Which version the server turned out to be; None if there was none, or if that was known before its start."""
        endpoint: Endpoint | None = self.__dict__.get("_endpoint")
        if endpoint is None or endpoint.kind == "embedded":
            return None
        return f"the server ({endpoint.why}) is PostgreSQL {endpoint.version}"

    @property
    def instead(self) -> str | None:
        """Which server there was instead of the one that would be expected, and since what; None if it was that one."""
        endpoint: Endpoint | None = self.__dict__.get("_endpoint")
        if endpoint is None or not endpoint.since:
            return None
        return f"the server was PostgreSQL {endpoint.version} ({endpoint.why}), since {endpoint.since}"

    @property
    def dropped(self) -> list[str]:
        """Which tests' sets could not be leased again, and why."""
        return self._leases.dropped if "_leases" in self.__dict__ else []

    @property
    def gone(self) -> set[str]:
        """Schemas that had to stay, and were dropped later."""
        return self._leases.gone if "_leases" in self.__dict__ else set()

    def revoke(self, tenant: Tenant) -> None:
        """Ends a tenant's term; `settle` then drops its sets. Raises LeaseLost if they were lost."""
        if "_leases" in self.__dict__:
            self._leases.revoke(tenant)
            tenant.term.check_lost()

    def begin_test(self, test: str) -> None:
        """Says which test runs now."""
        self.test = test
        if "_pools" in self.__dict__:
            self._pools.begin_test(test)

    def settle(self) -> list[Leak]:
        """Has what was given back made ready for the next tests; returns what was found wrong since the last time."""
        if "pool" not in self.__dict__:
            return []
        self._pools.next_test()
        if not self._leases.unsettled:
            return []
        if self._leases.may_settle_later:
            self._settle_later()
            return []
        return self.loop.run(self._leases.settle())

    def _settle_later(self) -> None:
        try:
            self._leases.settle_later()
        except BaseException:
            self.loop.run(self._leases.lose_given_up())
            raise

    def clear(self) -> list[Leak]:
        """Drops all that tests have given back; returns what was found wrong."""
        return self.loop.run(self._leases.clear()) if "_leases" in self.__dict__ else []

    @cached_property
    def loop(self) -> PrivateLoop:
        """The private loop."""
        from pytest_pgdbm.connections.loop import PrivateLoop

        loop = PrivateLoop()
        self._closers.append(loop.close)
        return loop

    def close(self) -> None:
        """Ends everything that this process has of the run; the last process of the run waits for the server's end."""
        while self._closers:
            self._closers.pop()()

    def _let_go(self) -> None:
        """In a forked child: whatever this has is the parent's, and its threads are not here."""
        self._workers_database.admin.let_go()
        self._closers, self._turn = [], threading.Lock()
        self._parents = [self.__dict__.pop(name, None) for name in ("_leases", "_pools", "pool", "loop")]
        self.failure = "this process was forked from another one, and the connections to the server are that one's"

    @cached_property
    def _budget(self) -> Budget:
        from pytest_pgdbm.connections.budget import Budget

        return Budget.of(self._get_endpoint(), self.run.workers)

    @cached_property
    def _pools(self) -> Pools:
        from pytest_pgdbm.connections.pool_set import Pools

        pools = Pools(self.test, self._seats)
        self._closers.append(pools.end)
        return pools

    @cached_property
    def _seats(self) -> Seats:
        from pytest_pgdbm.connections.seats import Seats

        return Seats(self._crowd, self._budget.seats, self._turns if self._budget.tickets else None)

    @cached_property
    def _turns(self) -> Turns:
        from pytest_pgdbm.connections.turns import Turns

        turns = Turns(self._workers_database.admin, self._crowd, self._budget.tickets, self.loop.wait)
        self._closers.append(lambda: self.loop.run(turns.close()))
        return turns

    @cached_property
    def _crowd(self) -> Crowd:
        from pytest_pgdbm.connections.crowd import Crowd, Held, holders

        async def ask() -> Sequence[Held]:
            async with self._workers_database.admin.administrator() as connection:
                return await holders(connection, self.run.id)

        return Crowd(self._get_endpoint(), ask=lambda: self.loop.wait(ask()), say=self.waits.append)

    def _open_pool(self, database: str) -> SharedPool:
        from pytest_pgdbm.connections.opening import Opening

        endpoint = self._get_endpoint()
        return self._pools.add(
            Opening(
                endpoint,
                database,
                application_name=self._application("pool"),
                path=self._path,
                size=self._budget.pool,
                options={**(_UNTIMED if self.debugged else {}), **self.pool_options},
                end=None if self._budget.spare else self._end_backends,
            )
        )

    async def _end_backends(self, pids: Collection[int], application: str) -> dict[int, Activity]:
        from pytest_pgdbm.connections import backends

        return await self.loop.wait(backends.end_by(self._workers_database.admin, pids, application=application))

    @cached_property
    def _leases(self) -> Leases:
        homes: dict[Isolation, AnyHome] = {"schema": self._home, "database": self._database_home}
        from pytest_pgdbm.leasing.leases import Leases

        if not self._get_endpoint().own:
            self.loop.run(self._sweeper.begin())
        leases = Leases(homes, self._pools, self.loop.post)
        if hasattr(os, "register_at_fork"):
            child = weakref.WeakMethod(self._let_go)
            os.register_at_fork(after_in_child=lambda: (child() or _nothing)())
        self._workers_database.admin.on_loss.append(leases.lose)
        return leases

    @cached_property
    def _home(self) -> Home:
        database = self._workers_database
        from pytest_pgdbm.schemas.home import Home

        home = Home(self._common, database.name, self.pool, admin=database.admin, keeping=database.keeping)
        self._closers.append(lambda: self.loop.run(home.close()))
        return home

    @cached_property
    def _database_home(self) -> DatabaseHome:
        from pytest_pgdbm.schemas.database_home import DatabaseHome

        home = DatabaseHome(self._common, self._pools, self._open_pool, self._budget, self._databases_admin)
        self._closers.append(lambda: self.loop.run(home.close()))
        return home

    @cached_property
    def _sweeper(self) -> Sweeper:
        from pytest_pgdbm.schemas.sweeper import Sweeper

        sweeper = Sweeper(self._common, None if self._budget.spare else self._workers_database.admin)
        self._closers.append(lambda: self.loop.run(sweeper.end()))
        return sweeper

    @cached_property
    def _databases_admin(self) -> Admin:
        """The connection by way of which databases are made: at a URL, the one that there is."""
        if not self._get_endpoint().own:
            return self._workers_database.admin
        admin = self._admin(self._get_endpoint().database)
        self._closers.append(lambda: self.loop.run(admin.close()))
        return admin

    @cached_property
    def _common(self) -> Common:
        from pytest_pgdbm.schemas.site import Common

        return Common(
            self._get_endpoint(),
            self.run,
            path=self._path,
            pinned=self._pinned,
            timeout=self.settings.migration_timeout.value,
            extensions=frozenset(self.settings.extensions.value),
            say=self.waits.append,
        )

    @property
    def _database(self) -> str:
        return self._workers_database.name

    @cached_property
    def _workers_database(self) -> WorkersDatabase:
        from pytest_pgdbm.schemas.workers_database import get_database

        # Nothing is loaded in the loop's thread meanwhile: Python 3.11 cannot parse modules in two threads at once, as
        # pytest does that rewrites them. https://github.com/python/cpython/issues/106905
        database = self.loop.run(get_database(self._get_endpoint(), self.run, self._admin), _load_leases)
        self._closers.append(lambda: self.loop.run(database.end()))
        if database.keeping is None or not database.keeping.entries:
            _load()  # a set will be built
        return database

    @property
    def _admin(self) -> Callable[[str], Admin]:
        """Makes the connection that builds and drops in a database."""
        from pytest_pgdbm.connections.admin import Admin
        from pytest_pgdbm.connections.registration import Registration

        registration = Registration(self.run.id, self.run.worker)
        return partial(
            Admin,
            self._get_endpoint(),
            application_name=self._application("admin"),
            path=self._pinned,
            registration=registration,
            died=lambda: self._holding.server_death(),
            say=self.waits.append,
        )

    def _application(self, part: str) -> str:
        """What connections for this part of the work call themselves."""
        from pytest_pgdbm.ground.names import application_name

        return application_name(run=self.run.id, worker=self.run.worker, part=part)

    @cached_property
    def _pinned(self) -> str | None:
        from pytest_pgdbm.connections.opening import PGDBM_PATH

        return self._path.for_pool(PGDBM_PATH)

    def _check_path(self, tenant: Tenant) -> None:
        from pytest_pgdbm.connections import poolers

        poolers.check_path(self._get_endpoint(), self._path, tenant.path)

    @cached_property
    def _path(self) -> SearchPath:
        from pytest_pgdbm.connections.path import SearchPath

        return SearchPath.parse(self.settings.search_path.value)

    @cached_property
    def _holding(self) -> Holding:
        from pytest_pgdbm import keeper

        holding = keeper.join(self.run)
        self._closers.append(holding.leave)
        return holding

    def _get_endpoint(self) -> Endpoint:
        if self.failure is None:
            try:
                with self._quiet.quietly():
                    return self._endpoint
            except SharedFailure as error:
                self.failure = str(error)
            except PgdbmError as error:
                self.failure = str(error)
                raise
        raise ServerGone("no Postgres server in this run; the first test that asked for it, and the summary, say why")

    @cached_property
    def _quiet(self) -> ModuleType:
        """What the plugin's work logs stays out of the tests' records from now on."""
        from pytest_pgdbm.connections import quiet

        self._closers.append(quiet.install())
        return quiet

    @cached_property
    def _endpoint(self) -> Endpoint:
        from pytest_pgdbm.ground.endpoint import Endpoint
        from pytest_pgdbm.servers.choosing import Choice, get_server

        needed = {*self.settings.extensions.value, *self.needed_extensions()}
        choice = Choice(self.settings, self.run, needed)
        holding = self._holding

        def make() -> dict[str, Any]:
            return get_server(choice, holding, self._log_in, _load).to_json()

        found, _ = holding.once(make, timeout=SECONDS_FOR_A_SERVER)
        return replace(Endpoint.from_json(found), workers=self.run.workers)

    def _log_in(self, endpoint: Endpoint, patience: float) -> Endpoint:
        from pytest_pgdbm.connections.login import first_login
        from pytest_pgdbm.keeper import waiting

        stay = waiting.trim(Path(endpoint.kept_in), self.run.workers) if endpoint.kept_in else ()
        allow, shared = self.settings.url_allow, replace(endpoint, workers=self.run.workers)
        application = self._application("set-up")
        login = first_login(shared, application_name=application, patience=patience, waiting=stay, allow=allow)
        return self.loop.run(login, _load_pgdbm)


def _nothing() -> None:
    """Is done in a forked child of a run that is over."""


def _load_pgdbm() -> None:
    """Loads pgdbm, which takes longer than a login."""
    import pgdbm  # noqa: F401


def _load_leases() -> None:
    """Loads what leases sets that are there already."""
    import pytest_pgdbm.leasing.leases  # noqa: F401


def _load() -> None:
    """Loads what the work on the server needs, pgdbm above all; that takes as long as a server's start."""
    import pytest_pgdbm.schemas.construction  # noqa: F401

    _load_leases()
