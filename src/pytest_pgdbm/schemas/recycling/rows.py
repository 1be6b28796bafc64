"""A copy of the rows that a relation held when its set was first leased, and how they come back."""

from __future__ import annotations

import tempfile
from typing import IO, NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.schemas.recycling.inventory import Relation

MOST_BYTES_IN_MEMORY = 4 << 20


class Copy(NamedTuple):
    """The rows of a relation in their order on disk, as COPY writes them; large ones in a temporary file."""

    relation: Relation
    rows: IO[bytes]

    async def put_back(self, connection: asyncpg.Connection) -> None:
        """Fills the empty table. Values of identity columns are kept, generated ones are generated."""
        self.rows.seek(0)
        await connection.copy_to_table(
            self.relation.name, schema_name=self.relation.schema, columns=self.relation.columns, source=self.rows
        )

    async def is_like(self, connection: asyncpg.Connection) -> bool:
        """Whether the relation holds the same rows in the same order now."""
        now = await copy(connection, self.relation)
        with now.rows:
            self.rows.seek(0)
            now.rows.seek(0)
            return _equal(self.rows, now.rows)

    def content(self) -> bytes:
        """All of it."""
        self.rows.seek(0)
        return self.rows.read()

    def close(self) -> None:
        """Lets go of the rows."""
        self.rows.close()


def copy_of(relation: Relation, content: bytes) -> Copy:
    """The copy with this content."""
    rows = tempfile.SpooledTemporaryFile(MOST_BYTES_IN_MEMORY)  # noqa: SIM115  # closed with the copy
    rows.write(content)
    return Copy(relation, rows)


async def copy(connection: asyncpg.Connection, relation: Relation) -> Copy:
    """The rows that are there now."""
    rows = tempfile.SpooledTemporaryFile(MOST_BYTES_IN_MEMORY)  # noqa: SIM115  # closed with the copy
    columns = ", ".join(map(quote_ident, relation.columns))
    try:
        await connection.copy_from_query(f"select {columns} from only {relation} order by ctid", output=rows)
    except BaseException:
        rows.close()
        raise
    return Copy(relation, rows)


def _equal(one: IO[bytes], other: IO[bytes]) -> bool:
    one_part, other_part = b"", b""
    while one_part == other_part:
        one_part, other_part = one.read(1 << 16), other.read(1 << 16)
        if not one_part and not other_part:
            return True
    return False
