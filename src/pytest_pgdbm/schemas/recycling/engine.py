"""Gives sets back: what a test wrote goes, what cannot be proved pristine is told so that it is dropped."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Sequence

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas import fingerprint
from pytest_pgdbm.schemas.holders import find_writing
from pytest_pgdbm.schemas.recycling import function
from pytest_pgdbm.schemas.recycling.function import CHANGED, EMPTIED, HELD, UNTOUCHED, Found
from pytest_pgdbm.schemas.recycling.inventory import Inventory, Relation
from pytest_pgdbm.schemas.recycling.overlapped import Overlapped
from pytest_pgdbm.schemas.recycling.pristine import (
    Pristine,
    Unrecyclable,
    note,
    read_files,
    read_rows,
    reshape,
    shrink_indexes,
)
from pytest_pgdbm.schemas.recycling.recyclable import Recyclable
from pytest_pgdbm.schemas.recycling.vacuuming import WAITS, WAITS_FOR_A_START, flush, vacuum

HOLDERS_WAIT = 0.2
"""Seconds that the locks of a test that has ended may last: its connections' server processes are ending."""

_LONG_AGO = 1e9


class Recycler:
    """Notes what sets are like, and makes them so again, over the one connection for administration of a database.

    Nothing is done without being awaited while the SQL condition `unless` is true.
    """

    def __init__(self, admin: Admin, unless: str | None = None) -> None:
        self._admin = admin
        self._unless = unless
        self.overlapped = Overlapped(admin)
        """How the most of them come back, without anybody waiting."""
        self._numbers = itertools.count(1)
        self._hopeful = True

    def adopt(self, pristine: Pristine) -> Recyclable:
        """A set that another process has noted; it must be recycled before it is leased."""
        return Recyclable(self._new_name(), pristine, self._admin.losses, self._unless)

    async def note(self, schemas: Collection[str] | None) -> Recyclable:
        """Makes a set that was just built ready to be leased: these schemas, or the whole database for None.

        Raises Unrecyclable, or what the connection raises.
        """
        async with self._admin.resetter() as connection:
            try:
                return await self._note(connection, schemas)
            except asyncpg.PostgresError as error:
                raise Unrecyclable(f"the server said: {masked(str(error))}") from error

    async def _note(self, connection: asyncpg.Connection, schemas: Collection[str] | None) -> Recyclable:
        # Who kept one set from being noted will likely keep the next: each test would wait for it.
        waits, self._hopeful = (WAITS_FOR_A_START if self._hopeful else WAITS), False
        recyclable = self.adopt(await note(connection, schemas, waits))
        self._hopeful = True
        try:
            await self._empty(connection, recyclable, _LONG_AGO)
        except BaseException:
            recyclable.pristine.close()  # files of rows
            raise
        return recyclable

    async def recycle(self, recyclable: Recyclable, over: float, found: Found | None = None) -> Unrecyclable | None:
        """Makes a set as it was when it was noted. `over` is when its test had ended, by `time.monotonic()`.

        `found` is what its function has found, if that has emptied it already. Returns None, or why it could not be
        shown to be the same: then it must be dropped.
        """
        try:
            async with self._admin.resetter() as connection:
                if recyclable.losses != self._admin.losses:
                    raise Unrecyclable("the connection that shows others that it is in use was lost")
                await self._recycle(connection, recyclable, over, found)
                await self._define(connection, recyclable)  # so that it can come back without being awaited
        except Unrecyclable as reason:
            return reason
        except FAILURES as error:
            return Unrecyclable(f"the server said: {masked(str(error))}")
        return None

    def _new_name(self) -> str:
        return f"pgdbm_reset_{next(self._numbers)}"

    async def _recycle(
        self, connection: asyncpg.Connection, recyclable: Recyclable, over: float, found: Found | None
    ) -> None:
        pristine = recyclable.pristine
        moved: Collection[int] = ()
        if found is None:
            found, moved = await self._looked_at(connection, recyclable, over)
        if found.state == UNTOUCHED:
            return
        left = await _vacuumed(connection, pristine, found, moved)
        truncated = await _truncate(connection, pristine, left)
        touched = [table for table in pristine.inventory.tables if table.oid in {*found.touched, *truncated}]
        touched = [table for table in touched if table.oid in pristine.seeded]
        if touched:
            await _restore(connection, pristine, touched)
        views = [pristine.inventory.relations[oid] for oid in sorted(found.views)]
        if views:
            await _refresh(connection, pristine, views)
        written = {*found.dirty, *found.touched, *found.gained} - truncated
        reshaped = await reshape(connection, pristine.inventory, sorted(written))
        grown = {*found.grown, *(table.oid for table in touched)}
        shrunk = bool(grown) and await shrink_indexes(connection, pristine, sorted(grown))
        if reshaped or shrunk or truncated or views:
            await _expect_same(connection, pristine)
        if touched or views or truncated:
            pristine.files = await read_files(connection, pristine.inventory.stored)
            recyclable.session = -1  # the function knows the rows by their writers

    async def _looked_at(
        self, connection: asyncpg.Connection, recyclable: Recyclable, over: float
    ) -> tuple[Found, Collection[int]]:
        """What the function finds, once nobody is at work in the set, and which relations have new files.

        Raises Unrecyclable.
        """
        moved: Collection[int] = ()
        found = await self._empty(connection, recyclable, time.monotonic() - over)
        deadline = time.monotonic() + HOLDERS_WAIT
        while found.state == HELD:
            if time.monotonic() > deadline:
                raise await _held(connection, time.monotonic() - over)
            await asyncio.sleep(WAITS[2])
            found = await self._empty(connection, recyclable, time.monotonic() - over)
        if found.state == CHANGED:
            await _expect_same(connection, recyclable.pristine, found.structure)
            moved = await _disown_moved(connection, recyclable.pristine)
            recyclable.session = -1  # it may look for other OIDs now
            found = await self._empty(connection, recyclable, time.monotonic() - over)
            if found.state != EMPTIED:
                raise Unrecyclable("somebody is at work in it")
        return found, moved

    async def _empty(self, connection: asyncpg.Connection, recyclable: Recyclable, over: float) -> Found:
        """Looks at the set and empties it; its test ended `over` seconds ago."""
        await self._define(connection, recyclable)
        expected = recyclable.pristine.fingerprint.quick_value
        row = await connection.fetchrow(function.call(recyclable.name), expected, recyclable.since, over)
        found = Found(**row)
        recyclable.looked_at(found)
        return found

    async def _define(self, connection: asyncpg.Connection, recyclable: Recyclable) -> None:
        if recyclable.session != self._admin.session:
            await connection.execute(recyclable.definition)
            recyclable.session = self._admin.session


async def _held(connection: asyncpg.Connection, over: float) -> Unrecyclable:
    """Who is still at work, `over` seconds after the test ended. The drop tells of those who have locks."""
    writing = await find_writing(connection, over)
    if not writing:
        return Unrecyclable("a connection still holds locks on what is in it")
    who = ", ".join(map(str, writing))
    reason = Unrecyclable(f"a transaction from before the end of the test has written something: {who}")
    reason.holders = writing
    return reason


async def _vacuumed(
    connection: asyncpg.Connection, pristine: Pristine, found: Found, moved: Collection[int]
) -> set[int]:
    """Takes tables back to the pages that they had; those that are to be filled again, to none.

    Returns the tables where that was not possible, which have to be truncated, as the large ones have to be.
    """
    tables, sizes, freeze = pristine.vacuuming(found, moved)
    return {*found.large, *(table.oid for table in await vacuum(connection, tables, sizes, freeze=freeze))}


async def _truncate(connection: asyncpg.Connection, pristine: Pristine, oids: Collection[int]) -> set[int]:
    """Truncates these tables and with them all that refer to them; returns which those are."""
    tables = pristine.inventory.with_referring(oids)
    for table in tables:
        if table.truncating:
            raise Unrecyclable(f"{table} must be truncated, and a trigger would fire")
    if tables:
        names = ", ".join(f"{'only ' if table.kind == 'r' else ''}{table}" for table in tables)
        async with connection.transaction():
            await connection.execute(f"truncate {names}")
            await _expect_no_others(connection, pristine.inventory, [each.oid for each in tables if each.kind == "p"])
        await vacuum(connection, [table for table in tables if table.kind == "r"])
    return {table.oid for table in tables}


async def _expect_no_others(connection: asyncpg.Connection, inventory: Inventory, wholes: Sequence[int]) -> None:
    """To be called when they are locked; raises Unrecyclable if somebody has attached a partition since the look."""
    query = "select from unnest($1::oid[]) o, pg_catalog.pg_partition_tree(o) part where part.relid <> all($2::oid[])"
    if wholes and await connection.fetch(query, wholes, list(inventory.relations)):
        raise Unrecyclable("somebody has attached a partition to it meanwhile")


async def _restore(connection: asyncpg.Connection, pristine: Pristine, touched: Sequence[Relation]) -> None:
    """Puts the rows of empty tables back, in the order in which their foreign keys allow it."""
    for table in touched:
        if table.inserting:
            raise Unrecyclable(f"rows of {table} were changed, and a trigger would fire if they were put back")
    async with connection.transaction():
        for table in reversed(touched):
            await pristine.copies[table.oid].put_back(connection)
    await flush(connection)
    await vacuum(connection, touched, {oid: rows.size for oid, rows in pristine.seeded.items()})
    pristine.seeded.update(await read_rows(connection, touched))


async def _refresh(connection: asyncpg.Connection, pristine: Pristine, views: Sequence[Relation]) -> None:
    """Has materialized views made again from the tables, which are as they were."""
    for view in views:
        await connection.execute(f"refresh materialized view {view}")
        first = pristine.copies.get(view.oid)
        # One that was empty may have been so only because it was made before the seeds.
        same = await first.is_like(connection) if first else await _is_empty(connection, view)
        if not same:
            raise Unrecyclable(f"{view} came out otherwise when it was made again")
    await flush(connection)
    filled = [view for view in views if view.oid in pristine.copies]
    await vacuum(connection, views, {view.oid: pristine.seeded[view.oid].size for view in filled})
    pristine.seeded.update(await read_rows(connection, filled))


async def _is_empty(connection: asyncpg.Connection, relation: Relation) -> bool:
    return not await connection.fetchval(f"select exists (select from {relation})")


async def _disown_moved(connection: asyncpg.Connection, pristine: Pristine) -> set[int]:
    """Takes rows that were all written anew, by the same transactions but in another order, for touched.

    Returns the relations with new files.
    """
    now = await read_files(connection, pristine.inventory.stored)
    moved = {oid for oid, file in now.items() if pristine.files[oid] != file}
    for oid in moved & set(pristine.seeded):
        if not await pristine.copies[oid].is_like(connection):
            pristine.seeded[oid] = pristine.seeded[oid]._replace(writers=())
    pristine.files = now
    return moved


async def _expect_same(connection: asyncpg.Connection, pristine: Pristine, structure: str | None = None) -> None:
    """Looks closely whether the structure is what it was, after the quick look saw a change. Raises Unrecyclable."""
    if structure is None:
        verdict = await fingerprint.still(connection, pristine.fingerprint)
    else:
        verdict = await fingerprint.look_closely(connection, pristine.fingerprint, structure)
    if not verdict.same:
        raise Unrecyclable(verdict.changes)
    pristine.fingerprint = verdict.fingerprint
