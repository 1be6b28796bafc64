"""The only place where schemas are dropped.

A schema goes only with proof that this run made it, and only if nothing outside depends on it: `DROP … CASCADE` would
take a foreign view, or a foreign column with its data, along. What stays is told to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.proof import Proof

SECONDS_TO_LOCK = 5

_PROOF = """
select n.nspname as schema, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment
from pg_catalog.pg_namespace n where n.nspname = any($1)
"""

# Objects of other schemas that depend on an object of these: what CASCADE would take along. Views, defaults, triggers
# and policies count as their table's. https://www.postgresql.org/docs/current/catalog-pg-depend.html
_FOREIGN = """
with going as (select oid from pg_catalog.pg_namespace where nspname = any($1)),
inside(classid, objid, schema) as (
    select 'pg_catalog.pg_class'::regclass::oid, oid, relnamespace from pg_catalog.pg_class
        where relnamespace in (select oid from going)
    union all select 'pg_catalog.pg_type'::regclass, oid, typnamespace from pg_catalog.pg_type
        where typnamespace in (select oid from going)
    union all select 'pg_catalog.pg_proc'::regclass, oid, pronamespace from pg_catalog.pg_proc
        where pronamespace in (select oid from going)
    union all select 'pg_catalog.pg_operator'::regclass, oid, oprnamespace from pg_catalog.pg_operator
        where oprnamespace in (select oid from going)
    union all select 'pg_catalog.pg_opclass'::regclass, oid, opcnamespace from pg_catalog.pg_opclass
        where opcnamespace in (select oid from going)
    union all select 'pg_catalog.pg_collation'::regclass, oid, collnamespace from pg_catalog.pg_collation
        where collnamespace in (select oid from going)
    union all select 'pg_catalog.pg_ts_config'::regclass, oid, cfgnamespace from pg_catalog.pg_ts_config
        where cfgnamespace in (select oid from going)
    union all select 'pg_catalog.pg_ts_dict'::regclass, oid, dictnamespace from pg_catalog.pg_ts_dict
        where dictnamespace in (select oid from going)
    union all select 'pg_catalog.pg_constraint'::regclass, oid, connamespace from pg_catalog.pg_constraint
        where connamespace in (select oid from going)
    union all select 'pg_catalog.pg_namespace'::regclass, oid, oid from going
),
outside as (
    select i.schema, d.classid, d.objid, d.objsubid,
        case d.classid
            when 'pg_catalog.pg_class'::regclass then
                (select relnamespace from pg_catalog.pg_class where oid = d.objid)
            when 'pg_catalog.pg_type'::regclass then
                (select typnamespace from pg_catalog.pg_type where oid = d.objid)
            when 'pg_catalog.pg_proc'::regclass then
                (select pronamespace from pg_catalog.pg_proc where oid = d.objid)
            when 'pg_catalog.pg_constraint'::regclass then
                (select connamespace from pg_catalog.pg_constraint where oid = d.objid)
            when 'pg_catalog.pg_rewrite'::regclass then
                (select relnamespace from pg_catalog.pg_class c
                    join pg_catalog.pg_rewrite r on r.ev_class = c.oid where r.oid = d.objid)
            when 'pg_catalog.pg_attrdef'::regclass then
                (select relnamespace from pg_catalog.pg_class c
                    join pg_catalog.pg_attrdef a on a.adrelid = c.oid where a.oid = d.objid)
            when 'pg_catalog.pg_trigger'::regclass then
                (select relnamespace from pg_catalog.pg_class c
                    join pg_catalog.pg_trigger t on t.tgrelid = c.oid where t.oid = d.objid)
            when 'pg_catalog.pg_policy'::regclass then
                (select relnamespace from pg_catalog.pg_class c
                    join pg_catalog.pg_policy p on p.polrelid = c.oid where p.oid = d.objid)
        end as home
    from pg_catalog.pg_depend d
    join inside i on d.refclassid = i.classid and d.refobjid = i.objid
)
select distinct n.nspname as schema,
    pg_catalog.pg_describe_object(o.classid, o.objid, o.objsubid) as object
from outside o join pg_catalog.pg_namespace n on n.oid = o.schema
where o.home not in (select oid from going) and o.home <> 'pg_toast'::regnamespace
order by 1, 2
"""


@dataclass(frozen=True)
class Kept:
    """A schema that was not dropped, and why."""

    schema: str
    why: str


async def drop(
    connection: asyncpg.Connection, schemas: Sequence[str], proof: Proof
) -> list[Kept]:
    """Drops these schemas in one transaction; returns those that had to stay.

    Raises asyncpg.LockNotAvailableError if a lock is not had within five seconds; then all of them stand.
    """
    async with connection.transaction():
        await connection.execute(f"set local lock_timeout = '{SECONDS_TO_LOCK}s'")
        rows = await connection.fetch(_PROOF, list(schemas))
        proved = [row["schema"] for row in rows if proof.holds(row["schema"], row["comment"])]
        kept = [Kept(s, "no proof that this run made it") for s in _rest(rows, proved)]
        kept += await _hung_on(connection, proved)
        staying = {each.schema for each in kept}
        going = [schema for schema in proved if schema not in staying]
        if going:
            names = ", ".join(quote_ident(schema) for schema in going)
            await connection.execute(f"set local client_min_messages = warning; drop schema {names} cascade")
        for each in kept:
            if each.schema in proved:
                await _mark(connection, each)
    return kept


def _rest(rows: Sequence[asyncpg.Record], proved: Sequence[str]) -> list[str]:
    return [row["schema"] for row in rows if row["schema"] not in proved]


async def _hung_on(connection: asyncpg.Connection, schemas: Sequence[str]) -> list[Kept]:
    foreign: dict[str, list[str]] = {}
    for row in await connection.fetch(_FOREIGN, list(schemas)):
        foreign.setdefault(row["schema"], []).append(row["object"])
    return [
        Kept(schema, "what the plugin did not make depends on it: " + ", ".join(objects))
        for schema, objects in foreign.items()
    ]


async def _mark(connection: asyncpg.Connection, kept: Kept) -> None:
    said = await connection.fetchval(
        "select pg_catalog.obj_description(to_regnamespace($1), 'pg_namespace')", quote_ident(kept.schema)
    )
    text = quote_literal(f"{said}; kept: {kept.why}")
    await connection.execute(f"comment on schema {quote_ident(kept.schema)} is {text}")
