"""The quick look at a set: has any row of the system catalogs that describes it been written or
removed?

Every row carries the number of the transaction that wrote it (`xmin`), and DDL writes rows. With
each new number being higher, the number of rows and the sum of their `xmin` cannot stay the same
when a row was added, removed or replaced. Rows are found by index, in the ranges of OIDs that the
objects have: a set is built at one time, and the server hands OIDs out in turn.
https://www.postgresql.org/docs/current/ddl-system-columns.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.schemas.fingerprints.anatomy import FIRST_OID, RELATION, Anatomy, whole_catalogs

_FIRST = "select t.xmin as row_version from pg_catalog.{} t where "

# xmin minus 3, the lowest number there is, summed up. age() yields integers and costs half of a
# cast through text; both ages are reckoned from the same number. What is older than any other has
# the age 2147483647.
# https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND
_SUM = """(select pg_catalog.count(*) || ':'
    || (pg_catalog.count(v.age) * pg_catalog.age('3'::xid)::int8 - coalesce(pg_catalog.sum(v.age), 0))
from (select nullif(pg_catalog.age(u.row_version), 2147483647) as age from (
{}
) u) v)"""


class _Density(NamedTuple):
    """What lies in the ranges of OIDs: which catalogs have objects of others there, and which have
    no parts at all.
    """

    mixed: frozenset[str]
    empty: frozenset[str]
    extended: int
    """How many rows say that something belongs to, or depends on, an extension."""


async def row_versions(connection: asyncpg.Connection, anatomy: Anatomy) -> str:
    """An SQL expression for a short text: another one once DDL has touched the set, be it to no
    effect.

    It is meant for a prepared statement or a function; planning it takes longer than evaluating it.
    """
    density = await _look(connection, anatomy)
    return summed("\nunion all ".join(_rows(anatomy, density)))


def summed(rows: str) -> str:
    """An SQL expression for a short text, of the number of rows and the sum of `row_version`, the
    one column of these.
    """
    return _SUM.format(rows)


def _rows(anatomy: Anatomy, density: _Density) -> Iterator[str]:
    for catalog, oids in anatomy.objects.items():
        yield from _select(catalog, "oid", oids, density.mixed & {catalog})
    for part in anatomy.parts():
        if part.catalog not in density.empty:
            yield from _select(part.catalog, part.key, anatomy.objects[part.of], density.mixed & {part.of})
    for catalog in ("pg_description", "pg_seclabel"):
        yield from _select(catalog, "objoid", anatomy.everything, density.mixed)
    yield from _dependencies(anatomy, density)
    # Default privileges for all schemas: what is made here later has them too.
    yield f"{_FIRST.format('pg_default_acl')}t.defaclnamespace = 0"
    if anatomy.scope.whole:
        yield from _whole()


_HERE = "(select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())"

# Of a subscription an ordinary role may see the OID, not the xmin; a slot has neither.
_REPLICATION = (
    f"select t.oid::text::xid as row_version from pg_catalog.pg_subscription t where t.subdbid = {_HERE}",
    "select '3'::xid as row_version from pg_catalog.pg_replication_slots t"
    " where t.database = pg_catalog.current_database()",
)


def _whole() -> Iterator[str]:
    """What can be new in a database without a new row in pg_depend."""
    for catalog, condition in whole_catalogs():
        yield _FIRST.format(catalog) + condition
    yield f"{_FIRST.format('pg_db_role_setting')}t.setdatabase = {_HERE}"
    yield from _REPLICATION


def _dependencies(anatomy: Anatomy, density: _Density) -> Iterator[str]:
    """Rows of pg_depend: new objects depend on old ones; old ones can be tied to an extension.

    What depends on a part of a relation depends on the relation too.
    """
    for catalog, oids in anatomy.objects.items():
        if catalog not in RELATION:
            referred = f"refclassid = {_class(catalog)}"
            yield from _select("pg_depend", "refobjid", oids, density.mixed & {catalog}, referred)
    if density.extended <= len(anatomy.everything):
        yield f"{_FIRST.format('pg_depend')}t.refclassid = {_class('pg_extension')}"
        return
    for catalog, oids in anatomy.objects.items():
        if catalog not in RELATION or catalog == "pg_trigger":
            yield from _select("pg_depend", "objid", oids, density.mixed & {catalog}, f"classid = {_class(catalog)}")


def _select(
    catalog: str, column: str, oids: Sequence[int], mixed: frozenset[str], also: str | None = None
) -> Iterator[str]:
    first = _FIRST.format(catalog) + (f"t.{also} and " if also else "")
    old = [oid for oid in oids if oid < FIRST_OID]
    if old:
        yield first + _one_of(f"t.{column}", old)
    if new := oids[len(old) :]:
        span = f"t.{column} between {new[0]} and {new[-1]}"
        # Without "is not false" the index would be asked for each OID, before PostgreSQL 17.
        yield first + span + (f" and ({_one_of(f't.{column}', new)}) is not false" if mixed else "")


def _one_of(column: str, oids: Sequence[int]) -> str:
    return f"{column} = any('{{{','.join(map(str, oids))}}}'::oid[])"


def _class(catalog: str) -> str:
    return f"'pg_catalog.{catalog}'::regclass"


async def _look(connection: asyncpg.Connection, anatomy: Anatomy) -> _Density:
    counts = await _counts(connection, anatomy)
    mixed = {
        catalog for catalog, oids in anatomy.objects.items() if counts[catalog] != sum(oid >= FIRST_OID for oid in oids)
    }
    empty = {part.catalog for part in anatomy.parts() if not part.grows and counts[part.catalog] == 0}
    return _Density(frozenset(mixed), frozenset(empty), counts["extended"])


async def _counts(connection: asyncpg.Connection, anatomy: Anatomy) -> Mapping[str, int]:
    """How many rows there are in the ranges, whosoever they are."""
    queries = [_count(catalog, "oid", oids) for catalog, oids in anatomy.objects.items()]
    queries += [_count(part.catalog, part.key, anatomy.objects[part.of]) for part in anatomy.parts()]
    queries.append(
        "select 'extended', count(*) from pg_catalog.pg_depend t where t.refclassid = " + _class("pg_extension")
    )
    return dict(await connection.fetch(" union all ".join(queries)))


def _count(catalog: str, key: str, oids: Sequence[int]) -> str:
    # Tables for oversized values lie among the others.
    also = " and t.relnamespace <> 'pg_toast'::regnamespace" if catalog == "pg_class" else ""
    span = f"t.{key} between {max(oids[0], FIRST_OID)} and {oids[-1]}"
    return f"select '{catalog}' as catalog, pg_catalog.count(*) from pg_catalog.{catalog} t where {span}{also}"
