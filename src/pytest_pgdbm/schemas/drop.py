"""The only place where schemas are dropped.

A schema goes only with proof that this run made it, and only if nothing outside depends on it: `DROP … CASCADE` would
take a foreign view, or a foreign column with its data, along. That is read before, and what the drop has taken is
compared with it before it is committed: see `reckoning`. What stays is told to the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.catalog import BELONGING, IDENTITY, INSIDE
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.reckoning import reckon

SECONDS_TO_LOCK = 5.0

TRIES = 3
"""How often a drop is begun that somebody has come between; what they did can be seen the next time."""

_CHANGED = (asyncpg.SerializationError, asyncpg.UndefinedTableError)

# What is part of an extension goes with that only.
_IS_TABLE = """
c.relkind in ('r', 'p') and not exists (
    select from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
)
"""

# An owner who has taken the right to use the schema from himself may drop it, but name nothing in it.
_SCHEMAS = f"""
select n.oid, n.nspname as schema, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment, array(
    select c.relname from pg_catalog.pg_class c
    where c.relnamespace = n.oid and {_IS_TABLE} and pg_catalog.has_schema_privilege(n.oid, 'usage')
) as tables
from pg_catalog.pg_namespace n where n.nspname = any($1)
"""

# A partition depends on the whole, not the whole on it; but what is inserted there comes to lie in the partition.
_FILLED_FROM_ELSEWHERE = """
from pg_catalog.pg_inherits h join pg_catalog.pg_class part on part.oid = h.inhrelid
join pg_catalog.pg_class whole on whole.oid = h.inhparent
where part.relispartition and part.relkind in ('r', 'p', 'f')
    and part.relnamespace = any(array(select oid from own)) and whole.relnamespace <> all(array(select oid from own))
"""

# Whether anything depends on the schemas that does not surely lie in them: for most, the whole question.
_HANGS = f"""
with recursive {INSIDE}
select exists (
    select d.classid, d.objid
    from inside i join pg_catalog.pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid
    except select classid, objid from inside
) or exists (select {_FILLED_FROM_ELSEWHERE})
"""

_FOREIGN = f"""
with recursive {BELONGING}
select distinct n.nspname as schema, identity.type || ' ' || identity.identity as object
from belonging b
join pg_catalog.pg_namespace n on n.oid = b.via
{IDENTITY.format("b")}
where not b.inside
union
select n.nspname, 'rows of table ' || identity.identity
from (select part.relnamespace as via, 'pg_catalog.pg_class'::regclass as classid, whole.oid as objid, 0 as objsubid
    {_FILLED_FROM_ELSEWHERE}) f
join pg_catalog.pg_namespace n on n.oid = f.via
{IDENTITY.format("f")}
order by 1, 2
"""

_FEW_TABLES = f"""
select c.oid, c.relname as name from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and {_IS_TABLE} order by c.oid desc limit 20
"""


class Kept(NamedTuple):
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
    for _ in range(TRIES - 1):
        with contextlib.suppress(*_CHANGED):
            return await _drop(connection, schemas, proof, seconds, marking)
    return await _drop(connection, schemas, proof, seconds, marking)


async def _drop(
    connection: asyncpg.Connection, schemas: Sequence[str], proof: Proof, seconds: float, marking: bool
) -> list[Kept]:
    async with _transaction(connection, seconds):
        found = await connection.fetch(_SCHEMAS, list(schemas))
        proved = [row for row in found if proof.holds(row["schema"], row["comment"])]
        hung_on = await _drop_but_for_hung_on(connection, proved)
        if marking:
            await mark(connection, hung_on)
    return [Kept(row["schema"], "no proof that this run made it") for row in found if row not in proved] + hung_on


async def _drop_but_for_hung_on(connection: asyncpg.Connection, schemas: Sequence[asyncpg.Record]) -> list[Kept]:
    """Drops those that nothing foreign depends on, all together; returns the others."""
    if not schemas:
        return []
    reckoning = await reckon(connection, "pg_catalog.pg_namespace", [row["oid"] for row in schemas])
    kept = await find_hung_on(connection, [row["schema"] for row in schemas])
    if kept:
        names = {each.name for each in kept}
        return kept + await _drop_but_for_hung_on(connection, [row for row in schemas if row["schema"] not in names])
    await connection.execute(_statement(schemas))
    await reckoning.compare(connection)
    return []


def _statement(schemas: Sequence[asyncpg.Record]) -> str:
    """Tables are named one by one: one that somebody moves elsewhere meanwhile is missed then, and not taken along."""
    tables = [_qualified(row["schema"], table) for row in schemas for table in row["tables"]]
    names = ", ".join(quote_ident(row["schema"]) for row in schemas)
    return (f"drop table {', '.join(tables)} cascade; " if tables else "") + f"drop schema {names} cascade"


def _qualified(schema: str, name: str) -> str:
    return f"{quote_ident(schema)}.{quote_ident(name)}"


async def thin_out(connection: asyncpg.Connection, schema: str, proof: Proof, *, seconds: float) -> None:
    """Drops a schema's tables, a few at a time: all of it at once may need more locks than the server has.

    The same must hold for it as for a drop; otherwise nothing happens.
    """
    while True:
        async with _transaction(connection, seconds):
            found = await connection.fetch(_SCHEMAS, [schema])
            tables = await connection.fetch(_FEW_TABLES, schema)
            if not tables or not all(proof.holds(row["schema"], row["comment"]) for row in found):
                return
            reckoning = await reckon(connection, "pg_catalog.pg_class", [row["oid"] for row in tables])
            if await find_hung_on(connection, [schema]):
                return
            names = ", ".join(_qualified(schema, row["name"]) for row in tables)
            await connection.execute(f"drop table {names} cascade")
            await reckoning.compare(connection)


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection, seconds: float) -> AsyncIterator[None]:
    """As asyncpg's, in one round trip with its settings. Each statement sees what was committed by then."""
    await connection.execute(
        "begin isolation level read committed; set local client_min_messages = warning;"
        f" set local lock_timeout = {seconds * 1000:.0f}"
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
