"""Gives sets back: what a test wrote goes, what cannot be proved pristine is told so that it is dropped."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas import fingerprint
from pytest_pgdbm.schemas.recycling import function
from pytest_pgdbm.schemas.recycling.function import CHANGED, HELD, Found
from pytest_pgdbm.schemas.recycling.inventory import Relation
from pytest_pgdbm.schemas.recycling.pristine import (
    WAITS,
    Pristine,
    Unrecyclable,
    flush,
    note,
    read_files,
    read_rows,
    reshape,
    shrink_indexes,
    vacuum,
)

HOLDERS_WAIT = 0.2
"""Seconds that the locks of a test that has ended may last: its connections' server processes are ending."""


@dataclass
class Recyclable:
    """A set that can be given back: what it was like, and the function in the session that looks after it.

    `losses` is how often the connection for administration had been lost by then, and `since` the number of the next
    transaction before it was leased last.
    """

    name: str
    pristine: Pristine
    losses: int
    session: int = -1
    since: int = 0


@dataclass
class Progress:
    """How far the server's transactions have come when one was looked at last: all databases count together."""

    reached: int = 0


class Recycler:
    """Notes what sets are like, and makes them so again, over the one connection for administration of a database."""

    def __init__(self, admin: Admin, progress: Progress) -> None:
        self._admin = admin
        self._progress = progress
        self._numbers = itertools.count(1)

    def begin(self, recyclable: Recyclable) -> None:
        """Says that a set is leased now."""
        recyclable.since = self._progress.reached

    def adopt(self, pristine: Pristine) -> Recyclable:
        """A set that another process has noted; it must be recycled before it is leased."""
        return Recyclable(self._new_name(), pristine, self._admin.losses)

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
        recyclable = Recyclable(self._new_name(), await note(connection, schemas), self._admin.losses)
        try:
            await self._empty(connection, recyclable)
        except BaseException:
            recyclable.pristine.close()  # files of rows
            raise
        return recyclable

    async def recycle(self, recyclable: Recyclable) -> str:
        """Makes a set as it was when it was noted.

        Returns "", or why it could not be shown to be the same: then it must be dropped.
        """
        try:
            async with self._admin.resetter() as connection:
                if recyclable.losses != self._admin.losses:
                    raise Unrecyclable("the connection that shows others that it is in use was lost")
                await self._recycle(connection, recyclable)
        except Unrecyclable as reason:
            return str(reason)
        except FAILURES as error:
            return f"the server said: {masked(str(error))}"
        return ""

    def _new_name(self) -> str:
        return f"pgdbm_reset_{next(self._numbers)}"

    async def _recycle(self, connection: asyncpg.Connection, recyclable: Recyclable) -> None:
        pristine = recyclable.pristine
        found, moved = await self._looked_at(connection, recyclable)
        if found.state == function.UNTOUCHED:
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

    async def _looked_at(self, connection: asyncpg.Connection, recyclable: Recyclable) -> tuple[Found, Collection[int]]:
        """What the function finds, once nobody is at work in the set, and which relations have new files.

        Raises Unrecyclable.
        """
        moved: Collection[int] = ()
        found = await self._empty(connection, recyclable)
        deadline = asyncio.get_running_loop().time() + HOLDERS_WAIT
        while found.state == HELD:
            if asyncio.get_running_loop().time() > deadline:
                raise Unrecyclable("a connection still holds locks on its tables")
            await asyncio.sleep(WAITS[2])
            found = await self._empty(connection, recyclable)
        if found.state == CHANGED:
            await _expect_same(connection, recyclable.pristine, found.structure)
            moved = await _disown_moved(connection, recyclable.pristine)
            recyclable.session = -1  # it may look for other OIDs now
            found = await self._empty(connection, recyclable)
            if found.state != function.EMPTIED:
                raise Unrecyclable("somebody is at work in it")
        return found, moved

    async def _empty(self, connection: asyncpg.Connection, recyclable: Recyclable) -> Found:
        if recyclable.session != self._admin.session:
            await connection.execute(recyclable.pristine.definition(recyclable.name))
            recyclable.session = self._admin.session
        expected = recyclable.pristine.fingerprint.quick_value
        row = await connection.fetchrow(function.call(recyclable.name), expected, recyclable.since)
        found = Found(**row)
        self._progress.reached = found.reached
        return found


async def _vacuumed(
    connection: asyncpg.Connection, pristine: Pristine, found: Found, moved: Collection[int]
) -> set[int]:
    """Takes tables back to the pages that they had; those that are to be filled again, to none.

    Returns the tables where that was not possible, which have to be truncated, as the large ones have to be.
    """
    sizes = {oid: rows.size for oid, rows in pristine.seeded.items()}
    sizes |= dict.fromkeys((*found.dirty, *found.touched), 0)
    # In a new file the planner takes an empty table for one that it knows nothing of.
    written = {*found.dirty, *found.touched, *pristine.seeded, *moved} - set(found.large)
    tables = [table for table in pristine.inventory.tables if table.oid in written]
    # What was rolled back leaves no trace but that a session goes on at the page where it was.
    freeze = any(rows.spread for rows in pristine.seeded.values())
    return {*found.large, *(table.oid for table in await vacuum(connection, tables, sizes, freeze=freeze))}


async def _truncate(connection: asyncpg.Connection, pristine: Pristine, oids: Collection[int]) -> set[int]:
    """Truncates these tables and with them all that refer to them; returns which those are."""
    tables = pristine.inventory.with_referring(oids)
    for table in tables:
        if table.truncating:
            raise Unrecyclable(f"{table} must be truncated, and a trigger would fire")
    if tables:
        names = ", ".join(f"{'only ' if table.kind == 'r' else ''}{table}" for table in tables)
        await connection.execute(f"truncate {names}")
        await vacuum(connection, [table for table in tables if table.kind == "r"])
    return {table.oid for table in tables}


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
        if first is not None and not await first.is_like(connection):
            raise Unrecyclable(f"{view} came out otherwise when it was made again")
    await flush(connection)
    await vacuum(connection, views)
    filled = [view for view in views if view.oid in pristine.copies]
    pristine.seeded.update(await read_rows(connection, filled))


async def _disown_moved(connection: asyncpg.Connection, pristine: Pristine) -> set[int]:
    """Takes rows that were all written anew, by the same transactions but in another order, for touched.

    Returns the relations with new files.
    """
    now = await read_files(connection, pristine.inventory.stored)
    moved = {oid for oid, file in now.items() if pristine.files[oid] != file}
    for oid in moved & set(pristine.seeded):
        if not await pristine.copies[oid].is_like(connection):
            pristine.seeded[oid] = dataclasses.replace(pristine.seeded[oid], writers=())
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
