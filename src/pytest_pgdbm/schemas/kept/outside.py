"""The proof that a database is, outside of the sets in it, what it was when it was made.

A set's fingerprint sees the rows of the system catalogs that describe the set. This look sees all the others, those of
the system included: each has the number of the transaction that wrote it, and as those only grow, the number of rows
and the sum of their writers cannot both stay the same when a row was added, removed or replaced.
https://www.postgresql.org/docs/current/ddl-system-columns.html

Not seen are planner statistics, and rows in tables that are not a set's. So a database that has such tables, as some
extensions make them, is never the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.schemas.fingerprints.anatomy import FIRST_OID, PARTS, RELATION
from pytest_pgdbm.schemas.fingerprints.versions import summed

# Statistics, data, and what is looked at otherwise.
_LEFT_OUT = ("pg_statistic", "pg_statistic_ext_data", "pg_largeobject", "pg_depend")

# By what a row is known as a set's, where that is not its own OID. A constraint may be a domain's.
_KEYS = {
    **{part.catalog: f"t.{part.key}" for part in PARTS},
    **{catalog: f"t.{key}" for catalog, key in RELATION.items()},
    "pg_constraint": "greatest(t.conrelid, t.contypid)",
    "pg_description": "t.objoid",
    "pg_init_privs": "t.objoid",
    "pg_seclabel": "t.objoid",
    "pg_statistic_ext": "t.stxrelid",
    "pg_subscription_rel": "t.srrelid",
}
_TABLES = "tables"

_CATALOGS = """
select c.relname from pg_catalog.pg_class c
where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r' and not c.relisshared and c.relname <> all($1)
order by 1
"""

_ME = "(select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())"
_SHARED = f"""
select 0::oid, t.xmin from pg_catalog.pg_database t where t.oid = {_ME}
union all select 0, t.xmin from pg_catalog.pg_db_role_setting t where t.setdatabase = {_ME}
union all select 0, t.xmin from pg_catalog.pg_shdescription t
    where t.classoid = 'pg_catalog.pg_database'::regclass and t.objoid = {_ME}
union all select 0, t.xmin from pg_catalog.pg_shseclabel t
    where t.classoid = 'pg_catalog.pg_database'::regclass and t.objoid = {_ME}
union all select 0, t.xmin from pg_catalog.pg_subscription t where t.subdbid = {_ME}
union all select 0, t.transaction from pg_catalog.pg_prepared_xacts t where t.database = pg_catalog.current_database()
union all select 0, '3'::xid from pg_catalog.pg_replication_slots t where t.database = pg_catalog.current_database()
"""

# What sessions have made for themselves, and tables for oversized values, which go with their table.
_SKIPPED = """
homes as (select n.oid from pg_catalog.pg_namespace n where n.nspname ~ '^pg_(toast|temp)'),
skipped(oid) as materialized (
    select pg_catalog.unnest($1::oid[])
    union all select h.oid from homes h
    union all select c.oid from pg_catalog.pg_class c where c.relnamespace = any(array(select h.oid from homes h))
    union all select t.oid from pg_catalog.pg_type t where t.typnamespace = any(array(select h.oid from homes h))
    union all select p.oid from pg_catalog.pg_proc p where p.pronamespace = any(array(select h.oid from homes h))
)
"""


class Outside(NamedTuple):
    """What a database was like. `look` is a query whose parameter are the OIDs of all that is a set's."""

    look: str
    value: str

    async def still(self, connection: asyncpg.Connection, inside: Collection[int] = ()) -> bool:
        """Whether it is so now. The connection is one of a superuser."""
        return self.value == await _seen(connection, self.look, inside) != _TABLES

    async def anew(self, connection: asyncpg.Connection, inside: Collection[int] = ()) -> Outside:
        """The same, as it is now."""
        return Outside(self.look, await _seen(connection, self.look, inside))


async def take(connection: asyncpg.Connection) -> Outside:
    """What a database is like that was just made. The connection is one of a superuser."""
    catalogs = [row["relname"] for row in await connection.fetch(_CATALOGS, _LEFT_OUT)]
    look = _look(catalogs)
    return Outside(look, await _seen(connection, look, ()))


async def _seen(connection: asyncpg.Connection, look: str, inside: Collection[int]) -> str:
    return str(await connection.fetchval(look, list(inside)))


def _look(catalogs: Collection[str]) -> str:
    rows = "\nunion all ".join(_rows(catalogs))
    theirs = f"u.key < {FIRST_OID} or u.key not in (select s.oid from skipped s)"
    tables = (
        f"select from pg_catalog.pg_class c where c.oid >= {FIRST_OID} and c.relkind in ('r', 'p', 'm', 'S')"
        " and c.oid not in (select s.oid from skipped s)"
    )
    versions = summed(f"select u.row_version from ({rows}\noffset 0) u(key, row_version) where {theirs}")
    return f"with {_SKIPPED} select case when exists ({tables}) then '{_TABLES}' else {versions} end"


def _rows(catalogs: Collection[str]) -> Iterator[str]:
    yield _SHARED
    for catalog in catalogs:
        yield f"select {_KEYS.get(catalog, 't.oid')}, t.xmin from pg_catalog.{catalog} t"
    # That something belongs to an extension, or depends on one.
    yield "select t.objid, t.xmin from pg_catalog.pg_depend t where t.refclassid = 'pg_catalog.pg_extension'::regclass"
