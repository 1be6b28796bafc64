"""The only place where schemas are dropped.

A schema goes only with proof that this run made it, and only if nothing outside depends on it: `DROP … CASCADE` would
take a foreign view, or a foreign column with its data, along. What stays is told to the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.catalog import BELONGING, IDENTITY, INSIDE
from pytest_pgdbm.schemas.proof import Proof

SECONDS_TO_LOCK = 5.0

_COMMENTS = """
select n.nspname as schema, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment
from pg_catalog.pg_namespace n where n.nspname = any($1)
"""

# Whether anything depends on the schemas that does not surely lie in them: for most, the whole question.
_HANGS = f"""
with recursive {INSIDE}
select exists (
    select d.classid, d.objid
    from inside i join pg_catalog.pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid
    except select classid, objid from inside
)
"""

_FOREIGN = f"""
with recursive {BELONGING}
select distinct n.nspname as schema, identity.type || ' ' || identity.identity as object
from belonging b
join pg_catalog.pg_namespace n on n.oid = b.via
{IDENTITY.format("b")}
where not b.inside
order by 1, 2
"""


_TABLES = """
select c.relname as name from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relkind in ('r', 'p') order by c.oid desc limit 20
"""


@dataclass(frozen=True)
class Kept:
    """A schema, or a database, that was not dropped, and why."""

    name: str
    why: str
    kind: str = "schema"


async def drop(
    connection: asyncpg.Connection,
    schemas: Sequence[str],
    proof: Proof,
    *,
    seconds: float = SECONDS_TO_LOCK,
    marking: bool = True,
) -> list[Kept]:
    """Drops these schemas in one transaction; returns those that had to stay, and marks them unless told not to.

    Raises asyncpg.PostgresError, LockNotAvailableError for one if a lock is not had within `seconds`; then all of
    them stand.
    """
    async with _transaction(connection, seconds):
        comments = await connection.fetch(_COMMENTS, list(schemas))
        proved = [row["schema"] for row in comments if proof.holds(row["schema"], row["comment"])]
        unproved = [row["schema"] for row in comments if row["schema"] not in proved]
        hung_on = await find_hung_on(connection, proved)
        going = [schema for schema in proved if schema not in {kept.name for kept in hung_on}]
        if going:
            await connection.execute(f"drop schema {', '.join(map(quote_ident, going))} cascade")
        if marking:
            await mark(connection, hung_on)
    return [Kept(schema, "no proof that this run made it") for schema in unproved] + hung_on


async def thin_out(connection: asyncpg.Connection, schema: str, proof: Proof, *, seconds: float) -> None:
    """Drops a schema's tables, a few at a time: all of it at once may need more locks than the server has.

    The same must hold for it as for a drop; otherwise nothing happens.
    """
    while True:
        async with _transaction(connection, seconds):
            comments = await connection.fetch(_COMMENTS, [schema])
            proved = all(proof.holds(row["schema"], row["comment"]) for row in comments)
            tables = await connection.fetch(_TABLES, schema)
            if not tables or not proved or await find_hung_on(connection, [schema]):
                return
            names = ", ".join(f"{quote_ident(schema)}.{quote_ident(row['name'])}" for row in tables)
            await connection.execute(f"drop table {names} cascade")


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection, seconds: float) -> AsyncIterator[None]:
    """As asyncpg's, in one round trip with its settings."""
    await connection.execute(
        f"begin; set local lock_timeout = {seconds * 1000:.0f}; set local client_min_messages = warning"
    )
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await connection.execute("rollback")
        raise
    await connection.execute("commit")


async def mark(connection: asyncpg.Connection, kept: Sequence[Kept]) -> None:
    """Notes on each schema why it was kept, after what its comment said first."""
    for each in kept:
        said = await connection.fetchval(
            "select pg_catalog.obj_description(oid, 'pg_namespace') from pg_catalog.pg_namespace where nspname = $1",
            each.name,
        )
        text = quote_literal(f"{said.partition('; kept: ')[0]}; kept: {each.why}")
        await connection.execute(f"comment on schema {quote_ident(each.name)} is {text}")


async def find_hung_on(connection: asyncpg.Connection, schemas: Sequence[str]) -> list[Kept]:
    """Which of these schemas must stay, and why. Once one stays, another may have to that it depends on."""
    foreign: dict[str, list[str]] = {}
    going = list(schemas)
    while going and await connection.fetchval(_HANGS, going):
        found = await connection.fetch(_FOREIGN, going)
        for row in found:
            foreign.setdefault(row["schema"], []).append(row["object"])
        if not found:
            break
        going = [schema for schema in going if schema not in foreign]
    return [
        Kept(schema, "what the plugin did not make depends on it: " + ", ".join(objects))
        for schema, objects in foreign.items()
    ]
