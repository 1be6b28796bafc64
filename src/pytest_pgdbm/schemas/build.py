"""Builds a set of schemas: pgdbm's own migration runner on each service, then its seeds."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager
from pgdbm.errors import MigrationError

from pytest_pgdbm.connections.manager import explain
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.ground.errors import BuildError, PgdbmWarning
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas import failures
from pytest_pgdbm.schemas.plan import Member, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.services.files import sort_warning
from pytest_pgdbm.sql.scan import with_existing_extensions
from pytest_pgdbm.sql.templates import with_schemas

Seeder = Callable[[Member, "Builder"], Awaitable[None]]


class Builder(AsyncDatabaseManager):
    """What pgdbm's migration runner is given: one connection, and the set's names for the services it speaks of."""

    def __init__(
        self, connection: asyncpg.Connection, *, schema: str, names: Mapping[str, str]
    ) -> None:
        watched = _Watched(connection)
        super().__init__(pool=cast(Any, watched), schema=schema)
        self.watched = watched
        self._names = names

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """The one connection."""
        yield self.watched

    def prepare_query(self, query: str) -> str:
        """Templates filled in; an extension is there already, so that its creation is made conditional."""
        return super().prepare_query(with_existing_extensions(with_schemas(query, self._names)))


class _Watched:
    """A connection that remembers the last statement, so that a failure can be placed in its file."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.last = ""
        self.error: asyncpg.PostgresError | None = None

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        self.last, self.error = query, None
        try:
            return cast(str, await self.connection.execute(query, *args, **options))
        except asyncpg.PostgresError as error:
            self.error = error  # pgdbm 0.4 keeps only its text
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


async def build(
    connection: asyncpg.Connection,
    plan: Plan,
    schemas: Mapping[str, str],
    *,
    proof: Proof,
    path: SearchPath,
    timeout: float | None,
    seed: Seeder,
) -> list[str]:
    """Makes the set's schemas, with all that its migrations and seeds put into them.

    The connection must be the role of tests. Returns the numbers of the transactions that the migrations ran in.
    Raises BuildError; what was made by then is the caller's to drop.
    """
    transactions: list[str] = []
    for member in plan.members:
        await _create(connection, schemas[member.name], proof.comment(member.name))
    for member in plan.members:
        schema = schemas[member.name]
        builder = Builder(connection, schema=schema, names=schemas)
        await _start(connection, path.for_schema(schema), timeout)
        await _migrate(builder, member, schema)
        # A migration's SET lasts as long as its session; in production pgdbm's pool undoes it as this does.
        await connection.execute("reset all")
        transactions += await _release_module(connection, member, schema)
        await _start(connection, path.for_schema(schema), None)
        await seed(member, builder)
    return transactions


async def _create(connection: asyncpg.Connection, schema: str, comment: str) -> None:
    name = quote_ident(schema)
    await connection.execute(f"create schema {name}; comment on schema {name} is {quote_literal(comment)}")


async def _start(connection: asyncpg.Connection, path: str | None, timeout: float | None) -> None:
    if path is not None:
        await connection.execute(f"set search_path to {path}")
    if timeout is not None:
        await connection.execute(f"set statement_timeout to '{timeout * 1000:.0f}'")


async def _migrate(builder: Builder, member: Member, schema: str) -> None:
    if odd := sort_warning(member.files):
        warnings.warn(f"service {member.name!r}: {odd}", PgdbmWarning, stacklevel=2)
    runner = AsyncMigrationManager(
        builder,
        migrations_path=str(member.service.migrations),
        migrations_table=member.service.migrations_table,
        # pgdbm's lock is on the module's name, whatever the schema: a shared one would have workers wait in line.
        module_name=schema,
    )
    try:
        result = await runner.apply_pending_migrations()
    except (MigrationError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise await _failed(builder, member, error) from error
    if result.get("status") == "error":  # pgdbm 0.4 returns what 0.5 raises
        raise await _failed(builder, member, BuildError(str(result.get("error"))), result)


async def _failed(
    builder: Builder, member: Member, error: Exception, result: Mapping[str, Any] | None = None
) -> BuildError:
    file = failures.file_of(error, result, member.files)
    watched, cause = builder.watched, builder.watched.error
    if cause is not None:
        explain(cause)
    line = None
    if file is not None:
        rendered = builder.prepare_query(file.text)
        line = await failures.line_of(watched.connection, rendered, watched.last, cause)
    return BuildError(failures.migration(member.name, file, line, cause or error))


async def _release_module(connection: asyncpg.Connection, member: Member, schema: str) -> list[str]:
    # A service that migrates itself at start-up looks for its own module's name, or NULL, and must find all applied.
    table = tracking_table(schema, member.service.migrations_table)
    rows = await connection.fetch(f"select distinct xmin::text as number from {table}")
    await connection.execute(f"update {table} set module_name = $1", member.service.module)
    return [row["number"] for row in rows]


def tracking_table(schema: str, table: str) -> str:
    """The table in which pgdbm notes what it applied, quoted; pgdbm writes it unquoted, hence in lower case."""
    return f"{quote_ident(schema)}.{quote_ident(table.lower())}"
