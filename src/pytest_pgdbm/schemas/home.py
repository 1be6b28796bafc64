"""Where the sets of this process live: it builds them, makes the managers on them, and drops them.

Building a set, leasing it to a test and giving it back are separate acts; giving back means dropping here. All of it
is done in the private loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import asyncpg

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.manager import Database, Term
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.ground.records import Endpoint, Run
from pytest_pgdbm.schemas import extensions, reach
from pytest_pgdbm.schemas.build import Builder, build
from pytest_pgdbm.schemas.drop import Kept, drop
from pytest_pgdbm.schemas.holders import Holder, end_holders
from pytest_pgdbm.schemas.plan import BuiltSet, Member, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.seeds import sow


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
        self._path = path
        self._timeout = timeout
        self._extensions = frozenset(extensions)
        self._proof = Proof(run.id)
        self._numbers = itertools.count(1)
        self._checked: set[tuple[object, ...]] = set()
        self._made: set[str] = set()
        application = names.application_name(run=run.id, worker=run.worker, part="admin")
        self._admin = Admin(endpoint, database, application_name=application, path=pinned)
        self.dsn = endpoint.url or endpoint.tcp_url(database, endpoint.login)

    async def build(self, plan: Plan, others: Sequence[str]) -> BuiltSet:
        """A new set on the server. `others` are the other services that the run knows.

        Raises BuildError, or whatever interrupts it; then nothing is left.
        """
        await self._make_extensions(plan)
        schemas = {name: self._new_name(name) for name in plan.names}
        term = Term("the seeds of " + ", ".join(plan.names))
        try:
            await self._build(plan, schemas, others, term)
        except BaseException:
            await asyncio.shield(self._undo(schemas))
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
        chosen, always = (self._path, False) if path is None else (path, True)
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

    async def drop(self, sets: Sequence[BuiltSet]) -> tuple[list[Kept], list[Holder]]:
        """Drops sets, all together; returns what had to stay, and who had to be cut off for it.

        A connection that still holds a lock on one of the schemas would have the drop wait for it.
        """
        schemas = [schema for each in sets for schema in each.schemas.values()]
        if not schemas:
            return [], []
        async with self._admin.administrator() as connection:
            holders = await end_holders(connection, schemas)
            try:
                return await drop(connection, schemas, self._proof), holders
            except asyncpg.LockNotAvailableError as error:
                why = f"its lock was not to be had: {error.args[0]}"
                return [Kept(schema, why) for schema in schemas], holders

    async def close(self) -> None:
        """Closes the connection. What was built and not dropped stays."""
        await self._admin.close()

    async def _build(
        self, plan: Plan, schemas: Mapping[str, str], others: Sequence[str], term: Term
    ) -> None:
        databases = self.managers(BuiltSet(plan, schemas), term, schemas)

        async def seed(member: Member, builder: Builder) -> None:
            await sow(builder, member.name, member.service.seeds, databases[member.name])

        async with self._admin.tester() as connection:
            transactions = await build(
                connection,
                plan,
                schemas,
                proof=self._proof,
                path=self._path,
                timeout=self._timeout,
                seed=seed,
            )
            if plan.key not in self._checked:
                await reach.check(connection, plan, schemas, transactions=transactions, others=others)
                self._checked.add(plan.key)

    async def _make_extensions(self, plan: Plan) -> None:
        wanted = self._extensions.union(*(member.extensions for member in plan.members)) - self._made
        if wanted:
            async with self._admin.administrator() as connection:
                await extensions.make(connection, wanted, self._endpoint)
            self._made |= wanted

    def _new_name(self, service: str) -> str:
        return names.schema_name(
            service, run=self._run.id, worker=self._run.worker, number=next(self._numbers)
        )

    async def _undo(self, schemas: Mapping[str, str]) -> None:
        async with self._admin.administrator() as connection:
            await drop(connection, list(schemas.values()), self._proof)


async def make_database(endpoint: Endpoint, run: Run) -> str:
    """This worker's own database on a server of our own; the endpoint's database over a URL."""
    if not endpoint.own:
        return endpoint.database
    database = names.database_name(run=run.id, worker=run.worker)
    application = names.application_name(run=run.id, worker=run.worker, part="set-up")
    connection: Any = await login.connect(
        endpoint, endpoint.database, endpoint.admin, application_name=application
    )
    try:
        await connection.execute(
            f"create database {quote_ident(database)} owner {quote_ident(endpoint.login.user)}"
        )
    except asyncpg.PostgresError as error:
        raise BuildError(f"database {database!r} could not be made: {error}") from error
    finally:
        await connection.close()
    return database
