"""One database in which sets are built, leased and made as they were: what both homes do their work with.

All of it is done in the private loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.registration import Registration
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.schemas import extensions
from pytest_pgdbm.schemas.contents import Contents
from pytest_pgdbm.schemas.kept.keeping import Keeping
from pytest_pgdbm.schemas.plan import BuiltSet, Manner, Plan, warn_of_order
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.recycling.engine import Recycler
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.schemas.recycling.overlapped import Done
from pytest_pgdbm.schemas.recycling.pristine import Pristine, Unrecyclable
from pytest_pgdbm.schemas.recycling.recyclable import Recyclable


@dataclass(frozen=True)
class Common:
    """What all sites of a process have in common.

    `path` is the search path of the tests' connections, `pinned` that of the plugin's own, None for the server's.
    `timeout` is how many seconds one migration may take, `extensions` are made besides those that services need, `say`
    is told of long waits for a connection.
    """

    endpoint: Endpoint
    run: Run
    path: SearchPath
    pinned: str | None
    timeout: float | None
    extensions: frozenset[str]
    say: Callable[[str], object] = str
    contents: Contents = field(default_factory=Contents)

    def application(self, part: str) -> str:
        """What connections of this process call themselves."""
        return names.application_name(run=self.run.id, worker=self.run.worker, part=part)


class Site:
    """A database, the connection that builds and resets in it, and the pool through which tests reach it.

    `proof` marks every schema that is made here. Without it the database is one set's alone: its schemas look as in
    production, its migrations may reach anywhere in it, and all of it is looked at when the set is given back.
    `admin` is the connection to build and reset by, which is closed elsewhere; without it the site has one of its own.
    `keeping` is for a database whose sets the next run may have. While the SQL condition `unless` is true, sets are
    made as they were by `recycle` only.
    """

    def __init__(
        self,
        common: Common,
        database: str,
        pool: SharedPool,
        proof: Proof | None,
        *,
        admin: Admin | None = None,
        keeping: Keeping | None = None,
        unless: str | None = None,
    ) -> None:
        self._common = common
        self._manner = Manner(proof, common.path, common.timeout)
        self._made: set[str] = set()
        self.database = database
        self.pool = pool
        self.dsn = common.endpoint.url_for(database)
        self.admin = admin or Admin(
            common.endpoint,
            database,
            application_name=common.application("admin"),
            path=common.pinned,
            say=common.say,
            registration=None if proof is None else Registration(common.run.id, common.run.worker),
        )
        self._closes_admin = admin is None
        self._keeping = keeping
        self._recycler = Recycler(self.admin, unless)
        self._recyclable: dict[BuiltSet, Recyclable] = {}

    async def build(self, plan: Plan, schemas: Mapping[str, str], others: Sequence[str]) -> BuiltSet:
        """A new set in these schemas, by service. `others` are the other services that the run knows.

        Raises BuildError, ReplayFailed, or whatever interrupts it; what was made by then is the caller's to take away.
        """
        built = BuiltSet(plan, schemas, self.database)
        term = Term("the seeds of " + ", ".join(plan.names))
        try:
            with _server_failures_told(plan):
                await self._make_extensions(plan)
                await self._build(built, others, term)
        except BaseException:
            self.pool.terminate()  # a seed that failed need not have given its connections back
            raise
        finally:
            term.end()
            await self.pool.close()
        return built

    def managers(
        self,
        built: BuiltSet,
        term: Term,
        names: Mapping[str, str],
        path: SearchPath | None = None,
    ) -> dict[str, Database]:
        """A manager on each schema of the set, for as long as `term` lasts.

        `names` are what its SQL can speak of; `path` is its search path where that is not the run's.
        """
        chosen, always = (self._common.path, False) if path is None else (path, True)
        managers: dict[str, Database] = {}
        for service, schema in built.schemas.items():
            managers[service] = Database(
                pool=self.pool,
                schema=schema,
                service=service,
                term=term,
                names=names,
                dsn=self.dsn,
                path=chosen.for_schema(schema, always=always),
                siblings=managers,
            )
        return managers

    async def settle_in(self, built: BuiltSet) -> None:
        """Makes a set ready to be leased again and again; before it is leased first. Raises Unrecyclable."""
        schemas = None if self._manner.proof is None else list(built.schemas.values())
        self._recyclable[built] = await self._recycler.note(schemas)

    async def adopt(self, built: BuiltSet, pristine: Pristine) -> bool:
        """Makes a set ready to be leased that another process has noted; False if it is not what it was then."""
        self._recyclable[built] = self._recycler.adopt(pristine)
        if await self.recycle(built):
            return False
        warn_of_order(built.plan)
        self._common.contents.seen.add(built.plan.key)
        return True

    def pristine(self, built: BuiltSet) -> Pristine:
        """What a set was like that was made ready to be leased."""
        return self._recyclable[built].pristine

    async def recycle(
        self, built: BuiltSet, over: float | None = None, found: Found | None = None
    ) -> Unrecyclable | None:
        """Makes a set as it was before; returns why that cannot be, or None.

        `over` is when its test ended, by `time.monotonic()`; now, unless it is said. `found` is what `begin` found.
        """
        over = time.monotonic() if over is None else over
        return await self._recycler.recycle(self._recyclable[built], over, found)

    def begin(self, built: BuiltSet, over: float, done: Done) -> bool:
        """Has a set made as it was before by messages that nobody waits for, if that is possible now; from any thread.

        `done` is told what came of it, after some calls of `go_on`.
        """
        noted = self._recyclable.get(built)
        return noted is not None and self._recycler.overlapped.begin(noted, over, done)

    def go_on(self) -> bool:
        """Hears what came of the messages, and sends what follows; from any thread, without waiting.

        Returns whether more is to come.
        """
        return self._recycler.overlapped.go_on()

    async def finish(self) -> None:
        """Has all come back that was begun, or handed over to `recycle`."""
        await self._recycler.overlapped.finish()

    def forget(self, sets: Sequence[BuiltSet]) -> None:
        """Says that these sets are given up."""
        for each in sets:
            if noted := self._recyclable.pop(each, None):
                noted.pristine.close()

    async def close(self) -> None:
        """Closes the site's own connection, and forgets all sets."""
        self.forget(list(self._recyclable))
        if self._closes_admin:
            await self.admin.close()

    async def _build(self, built: BuiltSet, others: Sequence[str], term: Term) -> None:
        # Which takes its time to load, and is not needed where all sets wait for the run already.
        from pytest_pgdbm.schemas.construction import construct

        databases = self.managers(built, term, built.schemas)
        async with self.admin.tester() as connection:
            await construct(connection, built, others, self._manner, self._common.contents, databases)

    async def _make_extensions(self, plan: Plan) -> None:
        wanted = self._common.extensions.union(*(member.extensions for member in plan.members)) - self._made
        if wanted:
            async with self.admin.administrator() as connection, self._noted(connection):
                await extensions.make(connection, wanted, self._common.endpoint, self._common.run.id)
            self._made |= wanted

    def _noted(self, connection: asyncpg.Connection) -> AbstractAsyncContextManager[None]:
        """What is changed outside of the sets is the plugin's doing."""
        if self._keeping is None:
            return nullcontext()
        own = (oid for each in self._recyclable.values() for oid in each.pristine.fingerprint.anatomy.everything)
        return self._keeping.changing(connection, own)


@contextmanager
def _server_failures_told(plan: Plan) -> Iterator[None]:
    """What comes up between the migrations: a right that was taken away, a server that went down."""
    try:
        yield
    except FAILURES as error:
        names = ", ".join(map(repr, plan.names))
        raise BuildError(f"the schemas of {names} could not be made: {masked(str(error))}") from error
