"""Builds a set of schemas: the migrations of each service, then its seeds.

The migrations are run by pgdbm's own runner; for a content that was built before, what that sent is replayed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import asyncpg
from pgdbm import AsyncMigrationManager
from pgdbm.errors import MigrationError
from pgdbm.migrations import Migration

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.hints import explain
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas import failures
from pytest_pgdbm.schemas.plan import Manner, Member, Plan
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.recording import Recorder, Recording, Template
from pytest_pgdbm.schemas.replay import replay
from pytest_pgdbm.schemas.watched import AfterFile, Builder, Watched

Seeder = Callable[[Member, Builder], Awaitable[None]]


async def build(
    connection: asyncpg.Connection,
    plan: Plan,
    schemas: Mapping[str, str],
    manner: Manner,
    *,
    seed: Seeder,
    after: AfterFile | None = None,
    recording: Recording | None = None,
) -> Recording | None:
    """Makes the set's schemas, with all that its migrations and seeds put into them.

    The connection must be the role of tests. `after` is called when a migration has run, in its transaction.
    From a `recording` the migrations are replayed, and nothing is called. Returns what the next set of this content
    can be made from, None if it needs the runner again. Raises BuildError, and ReplayFailed if there was a recording;
    what was made by then is the caller's to drop.
    """
    await _create(connection, schemas, manner.proof)
    names = list(schemas.values())
    made: dict[str, tuple[Template, ...] | None] = {}
    for member in plan.members:
        schema = schemas[member.name]
        watched = Watched(connection, recorder=Recorder(names), timeout=manner.timeout)
        builder = Builder(watched, schema=schema, names=schemas)
        await _take_path(connection, manner.path.for_schema(schema))
        if recording is not None:
            await replay(connection, recording.members[member.name], names, manner.timeout)
        else:
            made[member.name] = await _migrate(builder, member, after, renamed=manner.proof is not None)
        await _finish(connection, member, schema, manner)
        await seed(member, builder)
    return recording or _recording(made)


def _recording(made: Mapping[str, tuple[Template, ...] | None]) -> Recording | None:
    whole = {name: messages for name, messages in made.items() if messages is not None}
    return Recording(whole) if len(whole) == len(made) else None


async def _create(connection: asyncpg.Connection, schemas: Mapping[str, str], proof: Proof | None) -> None:
    statements = [f"create schema {quote_ident(schema)}" for schema in schemas.values() if schema != "public"]
    statements += [_comment(schema, proof.comment(service)) for service, schema in schemas.items() if proof]
    if statements:
        await connection.execute("; ".join(statements))


def _comment(schema: str, text: str) -> str:
    return f"comment on schema {quote_ident(schema)} is {quote_literal(text)}"


async def _take_path(connection: asyncpg.Connection, path: str | None) -> None:
    if path is not None:
        await connection.execute(f"set search_path to {path}")


class _Runner(AsyncMigrationManager):
    """pgdbm's, which reads its files once; pgdbm 0.5 reads all of them again for each that it applies."""

    _found: list[Migration] | None = None

    async def find_migration_files(self) -> list[Migration]:
        """What lay in the folder when it was first looked into."""
        if self._found is None:
            self._found = await super().find_migration_files()
        return self._found


async def _migrate(
    builder: Builder, member: Member, after: AfterFile | None, *, renamed: bool
) -> tuple[Template, ...] | None:
    """Runs the migrations; returns what can be replayed instead of that. `renamed` says for schemas of other names."""
    builder.watched.expect(member.files, builder.prepare_query, after)
    runner = _Runner(
        builder,
        migrations_path=str(member.service.migrations),
        migrations_table=member.service.migrations_table,
        # pgdbm's lock is on the module's name, whatever the schema: a shared one would have workers wait in line.
        module_name=builder.schema,
    )
    try:
        result = await runner.apply_pending_migrations()
    except (MigrationError, *FAILURES) as error:
        raise await _failed(builder, member, error) from error
    if result.get("status") == "error":  # pgdbm 0.4 returns what 0.5 raises
        raise await _failed(builder, member, MigrationError(str(result.get("error"))))
    return _recorded(builder, member, renamed)


def _recorded(builder: Builder, member: Member, renamed: bool) -> tuple[Template, ...] | None:
    watched = builder.watched
    if not watched.complete:
        watched.recorder.give_up()
    if renamed:
        watched.recorder.check(
            lambda text, schemas: builder.under(schemas).prepare_query(text), [file.text for file in member.files]
        )
    return watched.recorder.messages


async def _failed(builder: Builder, member: Member, error: Exception) -> BuildError:
    watched = builder.watched
    cause = watched.failure or error
    if isinstance(cause, BuildError):
        return cause
    if isinstance(cause, asyncpg.PostgresError):
        explain(cause, builder.names)
    line = await failures.line_of(watched.connection, watched.spot, cause)
    return BuildError(failures.migration(member.name, watched.spot, line, cause, watched.timeout))


async def _finish(connection: asyncpg.Connection, member: Member, schema: str, manner: Manner) -> None:
    module = quote_literal(member.service.module) if member.service.module else "null"
    statements = [
        # A migration's SET lasts as long as its session; in production pgdbm's pool undoes it as this does.
        "reset role",
        "reset all",
        # A service that migrates itself at start-up looks for its module's name, or NULL, and must find all applied.
        f"update {tracking_table(schema, member.service.migrations_table)} set module_name = {module}",
    ]
    if manner.proof is not None:
        # A migration may comment on its schema, and the comment is what the drop looks for.
        statements.append(_comment(schema, manner.proof.comment(member.name)))
    path = manner.path.for_schema(schema)
    if path is not None:
        statements.append(f"set search_path to {path}")
    await connection.execute("; ".join(statements))


def tracking_table(schema: str, table: str) -> str:
    """The table in which pgdbm notes what it applied, quoted; pgdbm writes it unquoted, hence in lower case."""
    return f"{quote_ident(schema)}.{quote_ident(table.lower())}"
