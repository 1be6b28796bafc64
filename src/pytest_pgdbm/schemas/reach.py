"""Finds migrations that reached outside their own schemas; looked for once per set and content in a run.

A throw-away schema isolates a test only as long as what the migrations make lies in it. Three things are looked at:
objects of the set that depend on something in another schema; catalog rows in other schemas that the set's own
transactions wrote (known by the row that pgdbm writes in each of them, so that concurrent work is never blamed); and
schemas that the SQL names itself, which no catalog records for function bodies. Dynamic SQL cannot be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import identifier
from pytest_pgdbm.schemas.plan import Member, Plan
from pytest_pgdbm.sql.scan import schemas_named

_SYSTEM = ("pg_catalog", "information_schema", "pg_toast", "public")

# What a transaction wrote carries its number in xmin. https://www.postgresql.org/docs/current/ddl-system-columns.html
_WRITTEN = """
select n.nspname || '.' || c.relname as object from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.xmin::text = any($1) and n.nspname <> all($2) and n.nspname !~ '^pg_(toast|temp)'
union all
select n.nspname || '.' || p.proname || '()' from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where p.xmin::text = any($1) and n.nspname <> all($2)
union all
select n.nspname || '.' || t.typname from pg_catalog.pg_type t
    join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    where t.xmin::text = any($1) and n.nspname <> all($2) and t.typelem = 0 and t.typrelid = 0
        and n.nspname !~ '^pg_(toast|temp)'
union all
select n.nspname || ' (the schema)' from pg_catalog.pg_namespace n
    where n.xmin::text = any($1) and n.nspname <> all($2)
order by 1
"""

_LEANING = """
select distinct pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) as object,
    n.nspname || '.' || r.relname as other
from pg_catalog.pg_depend d
join pg_catalog.pg_class r on d.refclassid = 'pg_catalog.pg_class'::regclass and r.oid = d.refobjid
join pg_catalog.pg_namespace n on n.oid = r.relnamespace
join pg_catalog.pg_constraint k on d.classid = 'pg_catalog.pg_constraint'::regclass and k.oid = d.objid
join pg_catalog.pg_namespace kn on kn.oid = k.connamespace
where kn.nspname = any($1) and n.nspname <> all($1)
    and not exists (select from pg_catalog.pg_depend e where e.classid = d.refclassid and e.objid = d.refobjid
        and e.deptype = 'e')
union
select distinct pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, v.oid, 0), n.nspname || '.' || r.relname
from pg_catalog.pg_depend d
join pg_catalog.pg_rewrite w on d.classid = 'pg_catalog.pg_rewrite'::regclass and w.oid = d.objid
join pg_catalog.pg_class v on v.oid = w.ev_class
join pg_catalog.pg_namespace vn on vn.oid = v.relnamespace
join pg_catalog.pg_class r on d.refclassid = 'pg_catalog.pg_class'::regclass and r.oid = d.refobjid
join pg_catalog.pg_namespace n on n.oid = r.relnamespace
where vn.nspname = any($1) and n.nspname <> all($1) and n.nspname not in ('pg_catalog', 'information_schema')
    and not exists (select from pg_catalog.pg_depend e where e.classid = d.refclassid and e.objid = d.refobjid
        and e.deptype = 'e')
order by 1
"""


async def check(
    connection: asyncpg.Connection,
    plan: Plan,
    schemas: Mapping[str, str],
    *,
    transactions: Sequence[str],
    others: Sequence[str],
) -> None:
    """Raises BuildError if the set that was just built has to do with anything outside itself.

    `transactions` are the numbers of those that migrated it; `others` the services that the run knows besides it.
    """
    found = await _written(connection, transactions, schemas)
    found += await _leaning(connection, schemas)
    existing = {row["nspname"] for row in await connection.fetch("select nspname from pg_catalog.pg_namespace")}
    own = set(schemas.values())
    for member in plan.members:
        found += _spoken(member, (existing - own) | {identifier(name) for name in (*others, *plan.names)})
    if found:
        raise BuildError(
            "a migration reached outside its schema\n"
            + "\n".join(f"  {each}" for each in found)
            + "\n  to mend it: write {{tables.x}} for the service's own tables and {{tables.<service>.x}} for another"
            " service's; what must lie elsewhere needs a whole database of its own"
        )


async def _written(
    connection: asyncpg.Connection, transactions: Sequence[str], schemas: Mapping[str, str]
) -> list[str]:
    rows = await connection.fetch(_WRITTEN, list(transactions), list(schemas.values()))
    return [f"{row['object']} was made or changed by it" for row in rows]


async def _leaning(connection: asyncpg.Connection, schemas: Mapping[str, str]) -> list[str]:
    rows = await connection.fetch(_LEANING, list(schemas.values()))
    return [f"{row['object']} refers to {row['other']}" for row in rows]


def _spoken(member: Member, foreign: set[str]) -> list[str]:
    return [
        f"{file.path}, line {name.line}: names {name.schema}.{name.name} itself"
        for file in member.files
        for name in schemas_named(file.text)
        if name.schema in foreign and name.schema not in _SYSTEM
    ]


class Reach:
    """The look at one set while it is built for the first time."""

    def __init__(
        self, connection: asyncpg.Connection, plan: Plan, schemas: Mapping[str, str], others: Sequence[str]
    ) -> None:
        self._all = (connection, plan, schemas, others)

    @classmethod
    async def before(
        cls, connection: asyncpg.Connection, plan: Plan, schemas: Mapping[str, str], others: Sequence[str]
    ) -> Reach:
        """Begins the look."""
        return cls(connection, plan, schemas, others)

    async def check_file(self, file: object) -> None:
        """Raises BuildError if the migration that ran just now wrote outside."""
        rows = await self._all[0].fetch(
            "select transactionid::text from pg_locks where pid = pg_backend_pid() and locktype = 'transactionid'"
        )
        if found := await _written(self._all[0], [row[0] for row in rows], self._all[2]):
            raise BuildError("a migration reached outside its schema\n" + "\n".join(f"  {each}" for each in found))

    async def check_set(self) -> None:
        """Raises BuildError if the set has to do with anything outside itself."""
        connection, plan, schemas, others = self._all
        await check(connection, plan, schemas, transactions=[], others=others)
