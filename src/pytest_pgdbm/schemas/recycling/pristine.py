"""What a set was like when it was first leased: noted once, after it was built, in the form that it is compared in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from pytest_pgdbm.schemas import fingerprint
from pytest_pgdbm.schemas.fingerprint import Fingerprint
from pytest_pgdbm.schemas.holders import Holder, find_oldest_reader
from pytest_pgdbm.schemas.recycling import disturbance, function
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.schemas.recycling.inventory import Inventory, Relation, read_inventory
from pytest_pgdbm.schemas.recycling.rows import Copy, copy
from pytest_pgdbm.schemas.recycling.seeded import SeededRows
from pytest_pgdbm.schemas.recycling.vacuuming import PAGES, WAITS_FOR_A_START, Vacuuming, flush, vacuum

_SCHEMAS = """
select nspname from pg_catalog.pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema' order by oid
"""

# A line pointer that is free, or was, tells a table whose rows were changed or deleted while it was built.
_ROWS = """
select {oid}::oid as oid, count(*) as count, array(select xmin::text from only {relation} group by xmin) as writers,
    count(*) < (select sum(p.last) from (
        select max((ctid::text::point)[1]::int) as last from only {relation} group by (ctid::text::point)[0]
    ) p) as holes
from only {relation}
"""


# An index whose root has been split; how, depends on the order in which the rows came.
_SPLIT = """
select c.oid from pg_catalog.pg_class c
where c.oid = any($1::oid[]) and pg_catalog.pg_indexes_size(c.oid) > 2 * pg_catalog.current_setting('block_size')::int
    * (select count(*) from pg_catalog.pg_index x where x.indrelid = c.oid)
"""


class Unrecyclable(Exception):
    """Why a set cannot be given back, only dropped. `holders` are connections that are the cause and go on."""

    holders: Sequence[Holder] = ()


@dataclass
class Pristine:
    """A set as it was first leased.

    `values` are those of the sequences, `copies` the rows that were there, `indexes` the bytes of the indexes on them,
    `files` the numbers of the files of all tables, all by OID.
    """

    schemas: Sequence[str]
    inventory: Inventory
    fingerprint: Fingerprint
    seeded: dict[int, SeededRows]
    values: Mapping[int, tuple[int, bool]]
    files: dict[int, int]
    copies: dict[int, Copy]
    indexes: Mapping[int, int]

    def definition(self, name: str) -> str:
        """The statements that make the function by which this set is emptied, and what that calls."""
        objects, look, helper = self.fingerprint.anatomy.everything, self.fingerprint.quick, f"{name}_disturbed"
        filled = [table for table in self.inventory.tables if table.oid in self.seeded]
        disturbed = disturbance.definition(helper, filled, self.seeded, self.indexes)
        emptying = function.definition(
            name, self.inventory, self.seeded, self.indexes, self.values, objects, look, disturbance.call(helper)
        )
        return f"{disturbed}; {emptying}"

    def vacuuming(self, found: Found, moved: Collection[int] = ()) -> Vacuuming:
        """What is to be vacuumed after what was found; `moved` are relations with new files.

        Tables that are to be filled again are to have no pages.
        """
        sizes = {oid: rows.size for oid, rows in self.seeded.items()}
        sizes |= dict.fromkeys((*found.dirty, *found.touched), 0)
        # In a new file the planner takes an empty table for one that it knows nothing of.
        written = {*found.dirty, *found.touched, *found.disturbed, *moved} - set(found.large)
        # What was rolled back leaves no trace but that a session goes on at the page where it was.
        freeze = any(rows.spread for rows in self.seeded.values())
        return Vacuuming([table for table in self.inventory.tables if table.oid in written], sizes, freeze)

    def close(self) -> None:
        """Lets go of the copies."""
        for each in self.copies.values():
            each.close()


async def note(
    connection: asyncpg.Connection, schemas: Collection[str] | None, waits: Sequence[float] = WAITS_FOR_A_START
) -> Pristine:
    """Makes a set that was just built as it will always be leased, and notes what that is.

    It is these schemas, or for None all of the database. Free places in tables are closed, sequences have no numbers
    in store, and the planner knows that tables are empty. While others still see rows that the build deleted it waits
    so many seconds, between tries. Raises Unrecyclable.
    """
    await flush(connection)
    names = list(schemas) if schemas is not None else await _all_schemas(connection)
    inventory = await read_inventory(connection, names)
    filled = await _filled(connection, inventory, waits)
    seeded = await read_rows(connection, filled)
    values = await _values(connection, inventory.sequences)
    taken = await fingerprint.take(connection, None if schemas is None else names)
    files, indexes = await read_files(connection, inventory.stored), await _index_sizes(connection, seeded)
    pristine = Pristine(names, inventory, taken, seeded, values, files, {}, indexes)
    try:
        for relation in filled:
            pristine.copies[relation.oid] = await copy(connection, relation)
    except BaseException:
        pristine.close()
        raise
    return pristine


async def read_files(connection: asyncpg.Connection, oids: Iterable[int]) -> dict[int, int]:
    """The number of each relation's file now; what writes all rows anew, as CLUSTER does, takes a new one."""
    query = "select c.oid, c.relfilenode from pg_catalog.pg_class c where c.oid = any($1::oid[])"
    return {row["oid"]: row["relfilenode"] for row in await connection.fetch(query, list(oids))}


async def _all_schemas(connection: asyncpg.Connection) -> list[str]:
    return [row["nspname"] for row in await connection.fetch(_SCHEMAS)]


async def read_rows(connection: asyncpg.Connection, relations: Sequence[Relation]) -> dict[int, SeededRows]:
    """What to know these relations' rows by."""
    if not relations:
        return {}
    pages = {row["oid"]: row for row in await connection.fetch(PAGES, [each.oid for each in relations])}
    return {
        oid: SeededRows(row["count"], sorted(map(int, row["writers"])), pages[oid]["size"], pages[oid]["spread"])
        for row in await _look_at_rows(connection, relations)
        for oid in [row["oid"]]
    }


async def _filled(connection: asyncpg.Connection, inventory: Inventory, waits: Sequence[float]) -> list[Relation]:
    """The relations that hold rows, which lie without free places between them."""
    stored = [*inventory.tables, *inventory.views]
    if not stored:
        return []
    unfinished = await vacuum(connection, stored, waits=waits)
    if unfinished:
        reader = await find_oldest_reader(connection) or "another connection"
        raise Unrecyclable(f"rows that were deleted from {unfinished[0]} are still seen by {reader}")
    pages = await connection.fetch(PAGES, [each.oid for each in stored])
    filled = [inventory.relations[row["oid"]] for row in pages if row["size"]]
    _check(filled)
    tables = [each for each in filled if each.kind == "r"]
    loose = {row["oid"] for row in await _look_at_rows(connection, filled) if row["holes"]}
    for relation in (each for each in tables if each.oid in loose):
        await connection.execute(f"vacuum (full) {relation}")
        await vacuum(connection, [relation], waits=waits)
    split = {row["oid"] for row in await connection.fetch(_SPLIT, [each.oid for each in tables])} - loose
    await _reindex(connection, (each for each in tables if each.oid in split))
    await reshape(connection, inventory, [each.oid for each in filled])
    return filled


async def shrink_indexes(connection: asyncpg.Connection, pristine: Pristine, oids: Collection[int]) -> bool:
    """Builds the indexes of these seeded tables anew, if rows that are gone have left more pages; whether any have.

    Where later rows come to lie depends on it: a page of the table is pruned when an index leads to it.
    """
    sizes = await _index_sizes(connection, oids)
    grown = [pristine.inventory.relations[oid] for oid, size in sizes.items() if size != pristine.indexes[oid]]
    await _reindex(connection, grown)
    return bool(grown)


async def _index_sizes(connection: asyncpg.Connection, oids: Iterable[int]) -> dict[int, int]:
    rows = await connection.fetch("select o, pg_catalog.pg_indexes_size(o) from unnest($1::oid[]) o", list(oids))
    return dict(map(tuple, rows))


async def _reindex(connection: asyncpg.Connection, tables: Iterable[Relation]) -> None:
    for table in tables:
        await connection.execute(f"reindex table {table}")


async def reshape(connection: asyncpg.Connection, inventory: Inventory, oids: Iterable[int]) -> bool:
    """Builds indexes of these relations anew that rows leave a mark in which are not there any more.

    Returns whether there are any.
    """
    indexes = [index for oid in oids for index in inventory.shaped.get(oid, ())]
    for index in indexes:
        await connection.execute(f"reindex index {index}")
    return bool(indexes)


async def _look_at_rows(connection: asyncpg.Connection, relations: Sequence[Relation]) -> list[asyncpg.Record]:
    if not relations:
        return []
    looks = (_ROWS.format(oid=relation.oid, relation=relation) for relation in relations)
    rows: list[asyncpg.Record] = await connection.fetch(" union all ".join(looks))
    return rows


def _check(filled: Iterable[Relation]) -> None:
    for relation in filled:
        if relation.filtered:
            raise Unrecyclable(f"a policy hides rows of {relation} from its owner (FORCE ROW LEVEL SECURITY)")


async def _values(connection: asyncpg.Connection, sequences: Sequence[Relation]) -> dict[int, tuple[int, bool]]:
    if not sequences:
        return {}
    looks = (f"select {each.oid}::oid as oid, last_value, is_called from {each}" for each in sequences)
    rows = await connection.fetch(" union all ".join(looks))
    return {row["oid"]: (row["last_value"], row["is_called"]) for row in rows}
