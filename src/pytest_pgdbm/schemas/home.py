"""Where the sets of this process live: it builds them, makes the managers on them, and drops them.

Building a set, leasing it to a test and giving it back are separate acts; giving back means dropping here. All of it
is done in the private loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.records import Endpoint, Run
from pytest_pgdbm.schemas import extensions
from pytest_pgdbm.schemas.build import Manner, build, warn_of_order
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.holders import Holder
from pytest_pgdbm.schemas.plan import BuiltSet, Member, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.reach import Reach
from pytest_pgdbm.schemas.recycling.engine import Recyclable, Recycler
from pytest_pgdbm.schemas.removal import Removal
from pytest_pgdbm.schemas.replay import Recordings, ReplayFailed
from pytest_pgdbm.schemas.seeds import sow
from pytest_pgdbm.schemas.watched import FAILURES, Builder

SECONDS_TO_UNDO = 10.0
"""How long the end of the process waits for builds that are being undone."""


@dataclass(frozen=True)
class Recycled:
    """A set that was given back. `why` it cannot be leased again and is to be dropped; "" if it is as it was."""

    built: BuiltSet
    why: str = ""


class Home:
    """The database in which this process makes its schemas, and its connection for doing so."""

    def __init__(
        self,
        endpoint: Endpoint,
        run: Run,
        *,
        database: str,
        pool: SharedPool,
        path: SearchPath,
        pinned: str | None,
        timeout: float | None,
        extensions: Collection[str],
    ) -> None:
        self._endpoint = endpoint
        self._run = run
        self._pool = pool
        self._manner = Manner(Proof(run.id), path, timeout)
        self._extensions = frozenset(extensions)
        self._numbers = itertools.count(1)
        self._checked: set[tuple[object, ...]] = set()
        self._recordings = Recordings()
        self._made: set[str] = set()
        self._working: set[asyncio.Task[Any]] = set()
        application = names.application_name(run=run.id, worker=run.worker, part="admin")
        self._admin = Admin(endpoint, database, application_name=application, path=pinned)
        pooled = names.application_name(run=run.id, worker=run.worker, part="pool")
        self._recycler = Recycler(self._admin)
        self._recyclable: dict[BuiltSet, Recyclable] = {}
        self._removal = Removal(self._admin, self._manner.proof, pooled)
        self.dsn = endpoint.url or endpoint.tcp_url(database, endpoint.login)

    async def build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        """A new set on the server. `others` are the other services that the run knows.

        Raises BuildError, or whatever interrupts it; then nothing is left.
        """
        try:
            return await self._build_anew(plan, others)
        except ReplayFailed:
            self._recordings.refuse(plan)
            return await self._build_anew(plan, others)

    async def _build_anew(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        schemas = {name: self._new_name(name) for name in plan.names}
        term = Term("the seeds of " + ", ".join(plan.names))
        with self._at_work():
            try:
                with _server_failures_told(plan):
                    await self._make_extensions(plan)
                    await self._build(plan, schemas, others, term)
            except BaseException as error:
                await asyncio.shield(self._begin_undo(list(schemas.values()), error))
                raise
            finally:
                term.ended = True
                await self._pool.close()
        return BuiltSet(plan, schemas)

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
        chosen, always = (self._manner.path, False) if path is None else (path, True)
        managers: dict[str, Database] = {}
        for service, schema in built.schemas.items():
            managers[service] = Database(
                pool=self._pool,
                schema=schema,
                service=service,
                term=term,
                names=names,
                dsn=self.dsn,
                path=chosen.for_schema(schema, always=always),
                sibling=managers.get,
            )
        return managers

    async def settle_in(self, built: BuiltSet) -> None:
        """Makes a set ready to be leased again and again; before it is leased first. Raises Unrecyclable."""
        self._recyclable[built] = await self._recycler.note(list(built.schemas.values()))

    def begin(self, built: BuiltSet) -> None:
        """Says that a set is leased now, if it is one that will be given back."""
        if built in self._recyclable:
            self._recycler.begin(self._recyclable[built])

    async def recycle(self, built: BuiltSet) -> Recycled:
        """Makes a set that was leased as it was before; to be called when nobody uses it any more."""
        return Recycled(built, await self._recycler.recycle(self._recyclable[built]))

    async def drop(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Drops sets, all together; returns what had to stay, and who had to be cut off for it.

        A connection that still holds a lock on one of the schemas would have the drop wait for it.
        """
        self._forget(sets)
        return await self._removal.remove([list(each.schemas.values()) for each in sets])

    async def close(self) -> None:
        """Closes the connection, after what is being undone. What was built and not dropped stays."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle(), SECONDS_TO_UNDO)
        self._forget(list(self._recyclable))
        await self._admin.close()

    def _forget(self, sets: Sequence[BuiltSet]) -> None:
        for each in sets:
            if noted := self._recyclable.pop(each, None):
                noted.pristine.close()

    async def _idle(self) -> None:
        while self._working:
            await asyncio.wait(self._working)

    async def _build(self, plan: Plan, schemas: Mapping[str, str], others: Sequence[str], term: Term) -> None:
        databases = self.managers(BuiltSet(plan, schemas), term, schemas)

        async def seed(member: Member, builder: Builder) -> None:
            await sow(builder, member.name, member.service.seeds, databases[member.name])

        async with self._admin.tester() as connection:
            first = plan.key not in self._checked
            reach = await Reach.before(connection, plan, schemas, others) if first else None
            after = reach.check_file if reach else None
            known = self._recordings.get(plan)
            made = await build(connection, plan, schemas, self._manner, seed=seed, after=after, recording=known)
            if reach is not None:
                await reach.check_set()
                warn_of_order(plan)
            self._checked.add(plan.key)
            self._recordings.keep(plan, made)

    async def _make_extensions(self, plan: Plan) -> None:
        wanted = self._extensions.union(*(member.extensions for member in plan.members)) - self._made
        if wanted:
            async with self._admin.administrator() as connection:
                await extensions.make(connection, wanted, self._endpoint)
            self._made |= wanted

    def _new_name(self, service: str) -> str:
        return names.schema_name(service, run=self._run.id, worker=self._run.worker, number=next(self._numbers))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        try:
            yield
        finally:
            self._working.discard(task)

    def _begin_undo(self, schemas: Sequence[str], error: BaseException) -> asyncio.Task[None]:
        """Its own task, which goes on when the one that waits for it is cancelled once more."""
        undoing = asyncio.ensure_future(self._undo(schemas, error))
        self._working.add(undoing)
        undoing.add_done_callback(self._working.discard)
        return undoing

    async def _undo(self, schemas: Sequence[str], error: BaseException) -> None:
        self._pool.terminate()  # a seed that failed need not have given its connections back
        kept, _ = await self._removal.remove([schemas])
        if kept and isinstance(error, BuildError):
            lines = [f"  schema {each.schema} stays: {each.why}" for each in kept]
            error.args = ("\n".join([str(error), *lines]),)


@contextmanager
def _server_failures_told(plan: Plan) -> Iterator[None]:
    """What comes up between the migrations: a right that was taken away, a server that went down."""
    try:
        yield
    except FAILURES as error:
        names = ", ".join(map(repr, plan.names))
        raise BuildError(f"the schemas of {names} could not be made: {masked(str(error))}") from error
