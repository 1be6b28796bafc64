"""What schemas are in the system catalogs: every row of every catalog that has to do with an object in them.

Nothing is chosen by hand: all catalogs are read that the server has, and all their columns but those that say how an
object is stored. Objects are told by their names, so that one that was dropped and made again in the same way is the
same. It shares no code with the fingerprint that the plugin takes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import asyncpg

FIRST = 16384
"""Objects that came with the server have lower numbers: `FirstNormalObjectId` in its src/include/access/transam.h."""

_NO_STRUCTURE = ("pg_statistic", "pg_statistic_ext_data", "pg_largeobject", "pg_largeobject_metadata")

# How a relation is stored at the moment, and flags that may say yes long after it is no.
# https://www.postgresql.org/docs/current/catalog-pg-class.html
_STORAGE = {
    "pg_class": (
        *("relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid", "relminmxid"),
        *("relhasindex", "relhasrules", "relhastriggers", "relhassubclass", "relrewrite"),
    ),
    "pg_index": ("indcheckxmin",),
    "pg_attribute": ("atthasmissing", "attmissingval", "attcacheoff"),
}

# The owner's column and acldefault()'s letter: no privileges are noted as long as nobody changed them.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-ACLITEM-FN-TABLE
_PRIVILEGES = {
    "pg_class": "acldefault(case relkind when 'S' then 's'::\"char\" else 'r' end, relowner)",
    "pg_proc": "acldefault('f', proowner)",
    "pg_type": "acldefault('T', typowner)",
    "pg_namespace": "acldefault('n', nspowner)",
}

_CATALOGS = """
select c.relname as catalog, a.attname as column, a.atttypid::regtype::text as type
from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0
where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r' and not c.relisshared and c.relname <> all($1)
order by c.relname, a.attnum
"""

# What sessions keep for themselves; its numbers are new in each session.
_TEMPORARY = """
with spaces as (select oid from pg_catalog.pg_namespace where nspname ~ '^pg_(toast_)?temp_'),
temporary(oids) as materialized (
    select array(
        select oid from spaces
        union all select oid from pg_catalog.pg_proc where pronamespace in (select oid from spaces)
    )
)
"""

_ONE = ("oid", "regproc", "regprocedure", "regclass", "regtype", "regoper", "regoperator", "regnamespace")
_MANY = ("oidvector", "oid[]")

# Where a statement stood in its text is noted in what was made of it.
_PLACES = re.compile(r" :(?:\w*location|stmt_len) -?\d+")
_NUMBER = re.compile(r"(?<!\d)\d{5,}(?!\d)")


@dataclass(frozen=True)
class Catalog:
    """A system catalog and its columns, in order, with their types."""

    name: str
    columns: Mapping[str, str]

    @cached_property
    def references(self) -> str:
        """An SQL expression: the numbers of all objects that a row speaks of, but its own."""
        ones = [f"{name}::oid" for name, kind in self.columns.items() if kind in _ONE and name != "oid"]
        many = [f"coalesce({name}::oid[], '{{}}')" for name, kind in self.columns.items() if kind in _MANY]
        return " || ".join([f"array[{', '.join(ones)}]::oid[]", *many])

    @property
    def is_not_systems(self) -> str:
        """An SQL condition: the row is of, or speaks of, something that did not come with the server."""
        own = f"oid >= {FIRST} or " if self.has_oid else ""
        return f"({own}{FIRST} <= any({self.references}))"

    @property
    def has_oid(self) -> bool:
        """Whether its rows have numbers of their own."""
        return "oid" in self.columns

    @cached_property
    def values(self) -> dict[str, str]:
        """An SQL expression for each column that says what an object is."""
        return {name: self._value(name) for name in self.columns if name not in _STORAGE.get(self.name, ())}

    def _value(self, column: str) -> str:
        if self.columns[column] != "aclitem[]":
            return column
        default = _PRIVILEGES.get(self.name, "'{}'::aclitem[]")
        return f"array(select x::text from unnest(coalesce({column}, {default})) x order by 1)"

    @property
    def digest(self) -> str:
        """A query for one row: the catalog, and a sum over all rows that are of objects neither the system's nor
        temporary.
        """
        row = f"row({', '.join(self.values.values())})::text"
        own = " and oid <> all((select oids from temporary)::oid[])" if self.has_oid else ""
        return (
            f"select '{self.name}', count(*) || ':' || coalesce(sum(hashtextextended({row}, 0)), 0)"
            f" from pg_catalog.{self.name} where {self.is_not_systems}"
            f" and not {self.references} && (select oids from temporary){own}"
        )

    @property
    def rows(self) -> str:
        """A query for those rows: the number of each, what it refers to, and its columns as JSON.

        What says that an object is part of another one counts as the object's.
        """
        values = {name: value for name, value in self.values.items() if self.name != "pg_enum" or name != "oid"}
        pairs = ", ".join(f"'{name}', {value}" for name, value in values.items())
        own = "oid" if self.has_oid else "case deptype when 'i' then objid end" if self.name == "pg_depend" else "null"
        return (
            f"select '{self.name}' as catalog, coalesce({own}, 0::oid) as oid, {self.references} as refs,"
            f" jsonb_build_object({pairs})::text as line from pg_catalog.{self.name} where {self.is_not_systems}"
        )

    @property
    def names(self) -> str:
        """A query for the name of each object that has a number."""
        identity = f"(pg_identify_object('pg_catalog.{self.name}'::regclass, oid, 0)).identity"
        if self.name.startswith("pg_publication"):  # its name is not the set's affair
            identity = f"regexp_replace({identity}, '(in publication )?[^ ]+$', '')"
        return f"select oid, '{self.name} ' || {identity} as name from pg_catalog.{self.name} where oid >= {FIRST}"


@dataclass(frozen=True)
class Structure:
    """What schemas are: `digest` is quickly had, and equal if nothing was changed in the whole database."""

    digest: Mapping[str, str]
    lines: Counter[str]


class Catalogs:
    """All catalogs of a server, and how they are read. The connection is a superuser's."""

    def __init__(self, connection: asyncpg.Connection, catalogs: Sequence[Catalog]) -> None:
        self._connection = connection
        self._digests = _TEMPORARY + "\nunion all ".join(catalog.digest for catalog in catalogs)
        self._rows = "\nunion all ".join(catalog.rows for catalog in catalogs)
        named = (catalog for catalog in catalogs if catalog.has_oid and catalog.name != "pg_enum")
        self._names = "\nunion all ".join(catalog.names for catalog in named)

    @classmethod
    async def of(cls, connection: asyncpg.Connection) -> Catalogs:
        """Those of the server that the connection is to."""
        found: dict[str, dict[str, str]] = {}
        for row in await connection.fetch(_CATALOGS, list(_NO_STRUCTURE)):
            found.setdefault(row["catalog"], {})[row["column"]] = row["type"]
        return cls(connection, [Catalog(name, columns) for name, columns in found.items()])

    async def digest(self) -> dict[str, str]:
        """For each catalog a sum over its rows."""
        return dict(await self._connection.fetch(self._digests))

    async def structure(self, schemas: Mapping[str, str]) -> Structure:
        """What these schemas are, their names replaced by the keys."""
        return Structure(await self.digest(), await self.lines(schemas))

    async def lines(self, schemas: Mapping[str, str]) -> Counter[str]:
        """Every row that has to do with these schemas, with names in the place of numbers."""
        rows = await self._connection.fetch(self._rows)
        spaces = await self._connection.fetch(
            "select oid from pg_catalog.pg_namespace where nspname = any($1)", list(schemas.values())
        )
        members = _members({row["oid"] for row in spaces}, rows)
        names = _Names(await self._connection.fetch(self._names), schemas)
        return Counter(
            f"{row['catalog']} {names.told(row['line'])}"
            for row in rows
            if row["oid"] in members or members.intersection(row["refs"]) or row["catalog"] == "pg_default_acl"
        )


def _members(members: set[int], rows: Sequence[asyncpg.Record]) -> set[int]:
    """The objects that are in the schemas, or are of such objects, or depend on them."""
    open_rows = [(row["oid"], frozenset(row["refs"])) for row in rows if row["oid"] and row["oid"] not in members]
    while found := {oid for oid, refs in open_rows if not members.isdisjoint(refs)}:
        members |= found
        open_rows = [(oid, refs) for oid, refs in open_rows if oid not in members]
    return members


class _Names:
    def __init__(self, rows: Iterable[asyncpg.Record], schemas: Mapping[str, str]) -> None:
        self._names = {str(row["oid"]): row["name"] for row in rows}
        self._schemas = {schema: f"<{service}>" for service, schema in schemas.items()}

    def told(self, line: str) -> str:
        text = _PLACES.sub("", line)
        for _ in range(2):  # the name of a table for TOAST has the number of its table
            text = _NUMBER.sub(lambda match: self._names.get(match[0], match[0]), text)
        for schema, name in self._schemas.items():
            text = text.replace(schema, name)
        return text


def differences(before: Counter[str], now: Counter[str]) -> list[str]:
    """What is gone and what is new, a line each."""
    gone = [f"gone: {_short(line)}" for line in sorted((before - now).elements())]
    return gone + [f"new: {_short(line)}" for line in sorted((now - before).elements())]


def _short(line: str) -> str:
    catalog, _, columns = line.partition(" ")
    try:
        told = {name: value for name, value in json.loads(columns).items() if value not in (None, "", [], False)}
    except ValueError:  # a name with a quote in it
        told = columns
    return f"{catalog} {told}"[:600]
