"""The long look at a set: a line for each row of the system catalogs that describes it, with a
hash of its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.schemas.fingerprints.anatomy import Anatomy, Part, belonging
from pytest_pgdbm.schemas.fingerprints.rows import VOLATILE, Rows, stand_in

_COLUMNS = """
select c.relname as catalog, pg_catalog.array_agg(a.attname::text order by a.attnum) as names,
    pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, null) order by a.attnum) as types
from pg_catalog.pg_class c
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'pg_catalog'::regnamespace and c.relname = any($1::name[])
    and a.attname <> all($2::name[])
group by 1
"""

# A record's hash is the sum of its columns' hashes times powers of 31. Two rows that swapped a
# value would have the same sum together, if nothing mixed each of them.
_LINES = """with recursive {belonging},
list(classid, oids) as materialized (
    select o.classid, pg_catalog.array_agg(o.objid order by o.objid) from ours o group by 1
),
line(catalog, label, hash) as (
    select raw.catalog, raw.label, pg_catalog.hashint8extended(raw.hash, 0) from (
{lines}
    ) as raw(catalog, label, hash)
)
"""

_OTHER_LINES = f"""select 'kinds', l.classid::regclass::text, pg_catalog.hash_record_extended(
    row(l.classid, pg_catalog.cardinality(l.oids)), 1) from list l
union all
select 'pg_description', pg_catalog.pg_describe_object(t.classoid, t.objoid, t.objsubid),
    pg_catalog.hash_record_extended(
        row(t.classoid, {stand_in("classoid", "objoid")}, t.objsubid, t.description), 2)
from pg_catalog.pg_description t join ours o on o.objid = t.objoid and o.classid = t.classoid
where t.objoid = any(array(select ours.objid from ours))
union all
select 'pg_seclabel', pg_catalog.pg_describe_object(t.classoid, t.objoid, t.objsubid),
    pg_catalog.hash_record_extended(
        row(t.classoid, {stand_in("classoid", "objoid")}, t.objsubid, t.provider, t.label), 3)
from pg_catalog.pg_seclabel t join ours o on o.objid = t.objoid and o.classid = t.classoid
union all
select 'pg_depend', pg_catalog.pg_describe_object(t.classid, t.objid, 0),
    pg_catalog.hash_record_extended(
        row(t.classid, {stand_in("classid", "objid")}, t.refobjid, t.deptype), 4)
from pg_catalog.pg_depend t join ours o on o.objid = t.objid and o.classid = t.classid
where t.refclassid = 'pg_catalog.pg_extension'::regclass
union all
select 'pg_default_acl', t.defaclrole::regrole::text, pg_catalog.hash_record_extended(
    row(t.defaclrole, t.defaclobjtype, t.defaclacl), 5)
from pg_catalog.pg_default_acl t where t.defaclnamespace = 0"""

_SETTINGS = """select 'pg_db_role_setting',
    case t.setrole when 0 then 'for all' else 'for ' || t.setrole::regrole end,
    pg_catalog.hash_record_extended(row(t.setrole, t.setconfig), 6)
from pg_catalog.pg_db_role_setting t join pg_catalog.pg_database d on d.oid = t.setdatabase
where d.datname = pg_catalog.current_database()"""

# What an ordinary role may see of them: https://www.postgresql.org/docs/current/catalog-pg-subscription.html
_REPLICATION = """select 'pg_subscription', t.subname::text,
    pg_catalog.hash_record_extended(row(t.subowner, t.subenabled, t.subpublications), 7)
from pg_catalog.pg_subscription t join pg_catalog.pg_database d on d.oid = t.subdbid
where d.datname = pg_catalog.current_database()
union all
select 'pg_replication_slots', t.slot_name::text, pg_catalog.hash_record_extended(row(t.plugin), 8)
from pg_catalog.pg_replication_slots t where t.database = pg_catalog.current_database()"""


class Line(NamedTuple):
    """A catalog, whose row it is, and a hash of what the row says."""

    catalog: str
    label: str
    hash: int


class Meaning:
    """SQL for the lines of a scope, as they are when it is asked."""

    def __init__(self, anatomy: Anatomy, lines: Sequence[str]) -> None:
        others = [_OTHER_LINES, _SETTINGS, _REPLICATION] if anatomy.scope.whole else [_OTHER_LINES]
        self._text = _LINES.format(
            belonging=belonging(anatomy.scope, anatomy.newest), lines="\nunion all\n".join([*lines, *others])
        )

    @classmethod
    async def of(cls, connection: asyncpg.Connection, anatomy: Anatomy) -> Meaning:
        """The SQL for a scope with such objects.

        It sees others too, but in less detail where they are of new kinds.
        """
        parts = [*(Part(catalog, "oid", catalog) for catalog in anatomy.objects), *anatomy.parts()]
        rows = await connection.fetch(_COLUMNS, [part.catalog for part in parts], VOLATILE)
        columns = {row["catalog"]: list(zip(row["names"], row["types"], strict=True)) for row in rows}
        major = connection.get_server_version().major
        return cls(anatomy, [Rows(part, columns[part.catalog], major).sql() for part in parts])

    def digest(self) -> str:
        """An SQL expression: the number of lines and the sum of their hashes, `/`, the same of the
        objects' OIDs.

        Only the first half has meaning. The second says whether objects were made anew.
        """
        lines = "select pg_catalog.count(*) || ':' || coalesce(pg_catalog.sum(line.hash), 0) from line"
        objects = "select pg_catalog.count(*) || ':' || coalesce(pg_catalog.sum(ours.objid::int8), 0) from ours"
        return f"({self._text} select ({lines}) || '/' || ({objects}))"

    async def lines(self, connection: asyncpg.Connection) -> list[Line]:
        """The lines as they are now."""
        rows = await connection.fetch(f"{self._text} select line.catalog, line.label, line.hash from line")
        return [Line(*row) for row in rows]
