"""What a set of schemas is, for a test that gets it: structure, rows in their order, sequences, pages, a dump.

Looked at by a superuser, from whom nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg
from equality import structure
from equality.structure import Catalogs, Structure

from pytest_pgdbm.ground.names import quote_ident, quote_literal

AS_STORED = """
set search_path = pg_catalog;
set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off; set enable_tidscan = off;
set synchronize_seqscans = off; set max_parallel_workers_per_gather = 0; set jit = off;
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set bytea_output = hex
"""
"""Has a table's rows come in the order in which they lie there."""

_RELATIONS = """
select n.nspname as schema, c.relname as name, c.relkind::text as kind, c.relispopulated as populated
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any($1) and c.relkind in ('r', 'm', 'S') order by 1, 2
"""

_PAGES = """
select n.nspname || '.' || c.relname as name, pg_relation_size(c.oid) / 8192 as main,
    c.reltoastrelid <> 0 and pg_relation_size(c.reltoastrelid) > 0 as toast
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any($1) and c.relkind in ('r', 'm')
"""

# A long row by what tells it from others. No table has a column of this name.
_ROW = "left(the_row::text, 100) || case when length(the_row::text) > 100 then md5(the_row::text) else '' end"

_TYPES = """
select n.nspname || '.' || t.typname as name, t.oid
from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace where n.nspname = any($1)
"""


@dataclass(frozen=True)
class Image:
    """What a set is: names of schemas are those of their services. `rows` are in the order in which they lie."""

    structure: Structure = field(repr=False)
    rows: Mapping[str, Sequence[str]] = field(repr=False)
    sequences: Mapping[str, tuple[int, int, bool]] = field(repr=False)
    pages: Mapping[str, tuple[int, bool]] = field(repr=False)
    types: Mapping[str, int] = field(repr=False)


class Observer:
    """Looks at the set whose schemas, by service, are given; over a superuser's connection of its own."""

    def __init__(self, connection: asyncpg.Connection, catalogs: Catalogs, schemas: Mapping[str, str]) -> None:
        self._connection = connection
        self._catalogs = catalogs
        self._schemas = schemas
        self._services = {schema: service for service, schema in schemas.items()}
        self._same_as_first: Mapping[str, str] | None = None

    @classmethod
    async def of(cls, connection: asyncpg.Connection, schemas: Mapping[str, str]) -> Observer:
        """One that sees rows as they are stored."""
        await connection.execute(AS_STORED)
        return cls(connection, await Catalogs.of(connection), schemas)

    async def image(self) -> Image:
        """All of it."""
        return Image(
            await self._catalogs.structure(self._schemas),
            await self.rows(),
            await self.sequences(),
            await self.pages(),
            await self.types(),
        )

    async def differences(self, first: Image) -> list[str]:
        """What is otherwise than it was then, a line each."""
        return [
            *await self._structural(first),
            *_rows_differ(first.rows, await self.rows()),
            *_values_differ("sequence", first.sequences, await self.sequences()),
            *_values_differ("pages of", first.pages, await self.pages()),
            *_values_differ("number of type", first.types, await self.types()),
        ]

    async def _structural(self, first: Image) -> list[str]:
        digest = await self._catalogs.digest()
        if digest in (first.structure.digest, self._same_as_first):
            return []
        told = structure.differences(first.structure.lines, await self._catalogs.lines(self._schemas))
        self._same_as_first = None if told else digest
        return told

    async def rows(self) -> dict[str, list[str]]:
        """The rows of each table and materialized view."""
        tables = [row for row in await self._relations() if row["kind"] != "S" and row["populated"]]
        query = "\nunion all ".join(
            f"select {quote_literal(self._told(table))}, array(select {_ROW} from only {_name(table)} as the_row)"
            for table in tables
        )
        return dict(await self._connection.fetch(query))

    async def sequences(self) -> dict[str, tuple[int, int, bool]]:
        """The state of each sequence: the last value, how many are logged ahead, and whether the last was given out."""
        query = "\nunion all ".join(
            f"select {quote_literal(self._told(row))} as name, last_value, log_cnt, is_called from {_name(row)}"
            for row in await self._relations()
            if row["kind"] == "S"
        )
        return {name: tuple(state) for name, *state in await self._connection.fetch(query)}

    async def pages(self) -> dict[str, tuple[int, bool]]:
        """How many pages each table has, and whether it keeps long values apart."""
        return {
            self._told_name(row["name"]): (row["main"], row["toast"])
            for row in await self._connection.fetch(_PAGES, list(self._services))
        }

    async def types(self) -> dict[str, int]:
        """The number of each type. A type of the same name and another number is a stranger to old connections."""
        return {
            self._told_name(row["name"]): row["oid"]
            for row in await self._connection.fetch(_TYPES, list(self._services))
        }

    async def _relations(self) -> list[asyncpg.Record]:
        return await self._connection.fetch(_RELATIONS, list(self._services))

    def _told(self, relation: asyncpg.Record) -> str:
        return f"{self._services[relation['schema']]}.{relation['name']}"

    def _told_name(self, name: str) -> str:
        schema, _, rest = name.partition(".")
        return f"{self._services[schema]}.{rest}"


def _name(relation: asyncpg.Record) -> str:
    return f"{quote_ident(relation['schema'])}.{quote_ident(relation['name'])}"


def _rows_differ(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"rows of {table}: gone" for table in before.keys() - now.keys()]
    lines += [f"rows of {table}: new" for table in now.keys() - before.keys()]
    for table in sorted(before.keys() & now.keys()):
        if before[table] != now[table]:
            lines.append(f"rows of {table}: {_told(before[table], now[table])}")
    return lines


def _told(before: Sequence[str], now: Sequence[str]) -> str:
    if sorted(before) == sorted(now):
        at = next(at for at, (one, other) in enumerate(zip(before, now, strict=True)) if one != other)
        return f"another order of the same {len(now)}, from number {at}: {now[at][:80]} instead of {before[at][:80]}"
    gone, new = [each for each in before if each not in set(now)], [each for each in now if each not in set(before)]
    return f"{len(before)} before, {len(now)} now; {len(gone)} gone: {_some(gone)}; {len(new)} new: {_some(new)}"


def _some(rows: Sequence[str]) -> str:
    return ", ".join(row[:80] for row in rows[:3]) or "none"


def _values_differ(what: str, before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        f"{what} {name}: {before.get(name)} before, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
