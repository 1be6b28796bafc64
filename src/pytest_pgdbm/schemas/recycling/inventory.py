"""What in a set of schemas can hold data: its tables, materialized views and sequences, and how each can be emptied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import quote_ident

# What fires for whoever resets: as a replica, triggers that are said to fire there or always. An ordinary role cannot
# be a replica: https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SESSION-REPLICATION-ROLE
_FIRING = {True: ["R", "A"], False: ["O", "A"]}

# The bits of pg_trigger.tgtype, from the server's pg_trigger.h.
_INSERT, _DELETE, _TRUNCATE = 4, 8, 32

_RELATIONS = f"""
select c.oid, n.nspname as schema, c.relname as name, c.relkind::text as kind, c.relpersistence = 'u' as unlogged,
    coalesce(t.inserting, false) as inserting,
    coalesce(t.deleting, false) or exists (
        select from pg_catalog.pg_rewrite r
        where r.ev_class = c.oid and r.ev_type = '4' and r.ev_enabled::text = any($2)
    ) as deleting,
    coalesce(t.truncating, false) as truncating,
    c.relforcerowsecurity and not $3 as filtered, c.reltoastrelid as toast,
    (select count(*) from pg_catalog.pg_trigger h where h.tgrelid = c.oid)
        + (select count(*) from pg_catalog.pg_rewrite h where h.ev_class = c.oid) as hooks,
    array(
        select a.attname::text from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
        order by a.attnum
    ) as columns,
    array(
        select distinct f.confrelid from pg_catalog.pg_constraint f
        where f.conrelid = c.oid and f.contype = 'f' and f.confrelid <> c.oid
    ) as refers_to,
    array(select x.indexrelid from pg_catalog.pg_index x where x.indrelid = c.oid order by 1) as indexes
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select bool_or(g.tgtype & {_INSERT} <> 0) as inserting, bool_or(g.tgtype & {_DELETE} <> 0) as deleting,
        bool_or(g.tgtype & {_TRUNCATE} <> 0) as truncating
    from pg_catalog.pg_trigger g where g.tgrelid = c.oid and not g.tgisinternal and g.tgenabled::text = any($2)
) t on true
where n.nspname = any($1) and c.relkind in ('r', 'p', 'm', 'S')
order by c.oid
"""

# In these a scan finds rows in the order of their keys and places. Others keep the shape that all rows gave them which
# were ever there.
_SHAPELESS = ["btree", "gin", "brin"]

_SHAPED = """
select x.indrelid as relation, format('%I.%I', n.nspname, c.relname) as index
from pg_catalog.pg_index x join pg_catalog.pg_class c on c.oid = x.indexrelid
join pg_catalog.pg_am a on a.oid = c.relam join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any($1) and c.relkind = 'i' and a.amname <> all($2) order by c.oid
"""


class Relation(NamedTuple):
    """A table, a partitioned table, a materialized view or a sequence.

    `inserting`, `deleting` and `truncating` tell whether something of the user's would fire if the reset did so,
    `filtered` whether a policy hides rows from it. `hooks` is how many triggers and rules it has, those of foreign keys
    to it among them. `columns` are those that can be written, `refers_to` the tables of its foreign keys. `toast` is
    the table of its oversized values, 0 if it has none, and `indexes` are its own.
    """

    oid: int
    schema: str
    name: str
    kind: str
    unlogged: bool
    inserting: bool
    deleting: bool
    truncating: bool
    filtered: bool
    hooks: int
    columns: Sequence[str]
    refers_to: Sequence[int]
    toast: int
    indexes: Sequence[int]

    def __str__(self) -> str:
        """Its quoted name, for SQL."""
        return f"{quote_ident(self.schema)}.{quote_ident(self.name)}"


@dataclass(frozen=True)
class Inventory:
    """The relations of a set by OID, in the order they were made.

    `shaped` are the quoted names of indexes, by relation, that have to be built anew to be as in a fresh table.
    """

    relations: Mapping[int, Relation]
    shaped: Mapping[int, Sequence[str]]
    superuser: bool

    @cached_property
    def tables(self) -> list[Relation]:
        """The tables that have rows of their own; each after those that refer to it, where that is possible."""
        return [table for group in self.groups for table in group]

    @cached_property
    def groups(self) -> list[list[Relation]]:
        """The same tables; those that refer to each other in a ring are in one group."""
        return list(_referring_first([each for each in self.relations.values() if each.kind == "r"]))

    @cached_property
    def views(self) -> list[Relation]:
        """The materialized views, each after those that it reads."""
        return [each for each in self.relations.values() if each.kind == "m"]

    @cached_property
    def sequences(self) -> list[Relation]:
        """The sequences."""
        return [each for each in self.relations.values() if each.kind == "S"]

    @property
    def stored(self) -> list[int]:
        """The OIDs of all that has rows in files of its own."""
        return [each.oid for each in (*self.tables, *self.views)]

    def with_referring(self, oids: Iterable[int]) -> list[Relation]:
        """These tables and all that refer to them, directly or through others: what TRUNCATE must be given at once."""
        found = set(oids)
        while more := {
            each.oid for each in self.relations.values() if each.oid not in found and found & set(each.refers_to)
        }:
            found |= more
        return [each for oid, each in self.relations.items() if oid in found]


async def read_inventory(connection: asyncpg.Connection, schemas: Collection[str]) -> Inventory:
    """What there is now."""
    superuser = connection.get_settings().is_superuser == "on"
    rows = await connection.fetch(_RELATIONS, list(schemas), _FIRING[superuser], superuser)
    relations = {row["oid"]: Relation(**row) for row in rows}
    shaped: dict[int, list[str]] = {}
    for row in await connection.fetch(_SHAPED, list(schemas), _SHAPELESS):
        shaped.setdefault(row["relation"], []).append(row["index"])
    return Inventory(relations, shaped, superuser)


def _referring_first(tables: Sequence[Relation]) -> Iterator[list[Relation]]:
    left = {table.oid: table for table in tables}
    while left:
        referred = {oid for table in left.values() for oid in table.refers_to}
        free = [table for oid, table in left.items() if oid not in referred]
        yield from ([table] for table in free) if free else [list(left.values())]
        for table in free or list(left.values()):
            del left[table.oid]
