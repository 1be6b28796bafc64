"""A worker's database on a kept server: what an earlier run has left in it, and what this one leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from pytest_pgdbm.ground.names import parse_schema
from pytest_pgdbm.keeper import waiting
from pytest_pgdbm.schemas.kept.record import Entry, Record


class Keeping:
    """The database's sets that nobody has now. `folder` is the kept server's, `server` its version."""

    def __init__(self, folder: Path, database: str, server: str, record: Record) -> None:
        """`record` is what the database was taken with, or what it was like when it was new."""
        self._folder = folder
        self._database = database
        self._server = server
        self._outside = record.outside
        self._asked: set[str] = set()
        self.entries = list(record.entries)
        self.runs = record.runs
        self.left = False
        """Whether the database waits for the next run."""

    def take(self, content: str) -> Entry | None:
        """A set of this content, which does not wait any more."""
        self._asked.add(content)
        for entry in self.entries:
            if entry.content == content:
                self.entries.remove(entry)
                return entry
        return None

    def add(self, entry: Entry) -> None:
        """Has a set wait for the next run."""
        self.entries.append(entry)

    def take_unasked(self) -> list[list[str]]:
        """The schemas of each set that the run did not ask for; they do not wait any more."""
        unasked = [entry for entry in self.entries if entry.content not in self._asked]
        self.entries = [entry for entry in self.entries if entry.content in self._asked]
        return [list(entry.schemas.values()) for entry in unasked]

    @asynccontextmanager
    async def changing(self, connection: asyncpg.Connection, inside: Iterable[int]) -> AsyncIterator[None]:
        """Around what the plugin itself changes outside of the sets. `inside` are the OIDs of those that do not wait.

        Afterwards the database is to be as it is then; but if it was not as it should be, it stays so.
        """
        known = [*inside, *self._inside]
        same = await self._outside.still(connection, known)
        yield
        if same:
            self._outside = await self._outside.anew(connection, known)

    async def leave(self, connection: asyncpg.Connection) -> None:
        """Leaves the database with the sets in it to the next run, if all else in it is as it should be."""
        if await self._outside.still(connection, self._inside):
            record = Record(self._made_by, self._outside, self.entries)
            self.left = waiting.put(self._folder, self._database, record.write(self._server))

    @property
    def _inside(self) -> list[int]:
        return [oid for entry in self.entries for oid in entry.inside]

    @property
    def _made_by(self) -> frozenset[str]:
        parsed = (parse_schema(schema) for entry in self.entries for schema in entry.schemas.values())
        return frozenset(name.run for name in parsed if name is not None)
