"""What a set of schemas consists of in the system catalogs: the objects in it, and the rows that
describe each of them.

An object belongs to a set if it depends on one of the schemas, directly or through others; so
`pg_depend` finds all of them by its index, however many other schemas the database has, and a new
object cannot come without a new row in it.
https://www.postgresql.org/docs/current/catalog-pg-depend.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import asyncpg

FIRST_OID = 16384
"""Objects that `initdb` did not make have this OID or a higher one (`FirstNormalObjectId` of the
server's sources).
"""


class Part(NamedTuple):
    """A catalog whose rows are parts of objects. `key` holds the OID of the object, whose own
    catalog is `of`.

    `grows` says that an object which exists already can be given a row there.
    """

    catalog: str
    key: str
    of: str
    grows: bool = False


PARTS = (
    Part("pg_attribute", "attrelid", "pg_class", grows=True),
    Part("pg_index", "indexrelid", "pg_class"),
    Part("pg_sequence", "seqrelid", "pg_class"),
    Part("pg_inherits", "inhrelid", "pg_class", grows=True),
    Part("pg_partitioned_table", "partrelid", "pg_class"),
    Part("pg_foreign_table", "ftrelid", "pg_class"),
    Part("pg_enum", "enumtypid", "pg_type", grows=True),
    Part("pg_range", "rngtypid", "pg_type"),
    Part("pg_aggregate", "aggfnoid", "pg_proc"),
    Part("pg_ts_config_map", "mapcfg", "pg_ts_config", grows=True),
)
"""What has no object identity of its own; comments, security labels and dependencies are of objects
of all kinds.
"""

RELATION = {
    "pg_attrdef": "adrelid",
    "pg_constraint": "conrelid",
    "pg_policy": "polrelid",
    "pg_publication_rel": "prrelid",
    "pg_rewrite": "ev_class",
    "pg_trigger": "tgrelid",
}
"""Objects that are part of a relation, with the column that says of which."""

_SCHEMA = {
    "pg_class": "relnamespace",
    "pg_type": "typnamespace",
    "pg_proc": "pronamespace",
    "pg_statistic_ext": "stxnamespace",
}

_WHOLE = (
    "pg_am",
    "pg_cast",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_language",
    "pg_publication",
    "pg_transform",
)
"""Objects that lie in no schema. Nothing depends on a schema in those that are new."""

# Only a superuser may read it. https://www.postgresql.org/docs/current/view-pg-user-mappings.html
_UNREADABLE = "pg_user_mapping"


class Scope(NamedTuple):
    """What a fingerprint is of: the schemas with these OIDs, or the whole database.

    The whole database is every schema but the system's and temporary ones, and what lies in no
    schema.
    """

    schemas: tuple[int, ...]
    whole: bool = False

    def roots(self) -> str:
        """SQL for rows `(classid, objid)`: what everything else in the scope depends on."""
        if not self.whole:
            own = f"n.oid = any('{{{','.join(map(str, self.schemas))}}}'::oid[])"
            return f"select 'pg_catalog.pg_namespace'::regclass::oid, n.oid from pg_catalog.pg_namespace n where {own}"
        return " union all ".join(
            f"select 'pg_catalog.{catalog}'::regclass::oid, t.oid from pg_catalog.{catalog} t where {condition}"
            for catalog, condition in whole_catalogs()
        )


def whole_catalogs() -> list[tuple[str, str]]:
    """The catalogs that a whole database's roots are in, each with which of its rows, as a
    condition on `t`.
    """
    schemas = "t.nspname !~ '^pg_' and t.nspname <> 'information_schema'"
    return [("pg_namespace", schemas), *((catalog, f"t.oid >= {FIRST_OID}") for catalog in _WHOLE)]


async def find_scope(connection: asyncpg.Connection, schemas: Sequence[str] | None) -> Scope:
    """The scope of schemas by name; of the whole database for None. Raises LookupError for one that
    is not there.
    """
    if schemas is None:
        return Scope((), whole=True)
    found = await connection.fetch(
        "select nspname, oid from pg_catalog.pg_namespace where nspname = any($1::name[]) order by oid", schemas
    )
    if missing := sorted(set(schemas) - {row["nspname"] for row in found}):
        raise LookupError(f"no such schema: {', '.join(missing)}")
    return Scope(tuple(row["oid"] for row in found))


def belonging(scope: Scope, newest: int) -> str:
    """Common table expressions, for after `with recursive`: `ours(classid, objid)` are the objects
    of the scope.

    Tables for oversized values and their indexes are left out: what can be set on them is set
    through their table, and some commands make new ones. So are temporary objects that use what is
    in the scope; none of them has an OID up to `newest`.
    """
    return f"""part(classid, objid) as (
    ({scope.roots()})
    union
    select d.classid, d.objid from part p
    join pg_catalog.pg_depend d on d.refclassid = p.classid and d.refobjid = p.objid
    where d.classid <> 'pg_catalog.{_UNREADABLE}'::regclass
        and not (d.deptype = 'i' and d.refobjsubid = 0
            and d.classid = 'pg_catalog.pg_class'::regclass and d.refclassid = 'pg_catalog.pg_class'::regclass)
),
marked(classid, objid, temporary) as materialized (
    select p.classid, p.objid, case when p.objid <= {newest} then false
        else coalesce({_schema("p.classid", "p.objid")} = any(array(
            select n.oid from pg_catalog.pg_namespace n where n.nspname ~ '^pg_temp')), false) end
    from part p
),
ours(classid, objid) as (select m.classid, m.objid from marked m where not m.temporary)
"""


def _schema(classid: str, objid: str) -> str:
    """An SQL expression: the schema of an object that can be temporary, null for others."""
    cases = [
        f"when 'pg_catalog.{catalog}'::regclass then"
        f" (select t.{column} from pg_catalog.{catalog} t where t.oid = {objid})"
        for catalog, column in _SCHEMA.items()
    ]
    cases += [
        f"when 'pg_catalog.{catalog}'::regclass then (select c.relnamespace from pg_catalog.{catalog} t"
        f" join pg_catalog.pg_class c on c.oid = t.{column} where t.oid = {objid})"
        for catalog, column in RELATION.items()
    ]
    return f"case {classid} {' '.join(cases)} end"


@dataclass(frozen=True)
class Anatomy:
    """The objects of a scope: sorted OIDs by the name of their catalog.

    None of the temporary objects that use them has an OID up to `newest`.
    """

    scope: Scope
    objects: Mapping[str, Sequence[int]]
    newest: int

    @cached_property
    def everything(self) -> list[int]:
        """The OIDs of all objects, sorted. Each OID is given once: a counter for all catalogs hands
        them out.
        """
        return sorted({oid for oids in self.objects.values() for oid in oids})

    def parts(self) -> list[Part]:
        """The catalogs in which the objects may have parts."""
        return [part for part in PARTS if part.of in self.objects]


async def read_anatomy(connection: asyncpg.Connection, scope: Scope) -> Anatomy:
    """The objects that are there now."""
    rows = await connection.fetch(
        f"with recursive {belonging(scope, 0)}"
        " select c.relname as catalog, pg_catalog.bool_or(m.temporary) as temporary,"
        " pg_catalog.array_agg(m.objid order by m.objid) filter (where not m.temporary) as oids"
        " from marked m join pg_catalog.pg_class c on c.oid = m.classid group by 1 order by 1"
    )
    objects = {row["catalog"]: row["oids"] for row in rows if row["oids"]}
    temporary = any(row["temporary"] for row in rows)
    return Anatomy(scope, objects, 0 if temporary else max((oids[-1] for oids in objects.values()), default=0))
