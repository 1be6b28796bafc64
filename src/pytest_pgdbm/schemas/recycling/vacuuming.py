"""Takes tables back to the pages that they had, by VACUUM: later rows then lie where they would in a new table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import quote_literal
from pytest_pgdbm.schemas.recycling.inventory import Relation

WAITS = (0.001, 0.002, 0.004)
"""Seconds between tries while a statement of somebody else's runs that still sees deleted rows."""

WAITS_FOR_A_START = (*WAITS, *[0.01] * 50)

# VACUUM takes no page for seen by all while a commit that wrote it is not on disk, or one of the next transactions, of
# whichever session, is not. A commit that waits for the disk has all earlier ones written:
# https://www.postgresql.org/docs/current/wal-async-commit.html
FLUSH = (
    "begin; set local synchronous_commit = on;"
    " select pg_catalog.pg_logical_emit_message(true, 'pytest-pgdbm', ''); commit"
)
"""Statements that have all that was committed written to disk."""

PAGES = """
select c.oid, pg_catalog.pg_relation_size(c.oid) as size,
    pg_catalog.pg_relation_size(c.oid) > pg_catalog.current_setting('block_size')::int as spread,
    c.relallvisible = c.relpages
        and c.relpages = pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int as visible
from pg_catalog.pg_class c where c.oid = any($1::oid[])
"""


class Vacuuming(NamedTuple):
    """What is to be vacuumed after a test: tables, the bytes that each is to have then (0 unless said), and how."""

    tables: Sequence[Relation]
    sizes: Mapping[int, int]
    freeze: bool


async def flush(connection: asyncpg.Connection) -> None:
    """Has all that was committed written to disk, so that VACUUM can say of its pages that all see them."""
    await connection.execute(FLUSH)


async def vacuum(
    connection: asyncpg.Connection,
    relations: Sequence[Relation],
    sizes: Mapping[int, int] | None = None,
    *,
    waits: Sequence[float] = WAITS,
    freeze: bool = False,
) -> list[Relation]:
    """Takes away what deleted rows have left; returns the tables where that was not possible yet.

    Any statement that runs in the database meanwhile may still see those rows, so that they stay until it has ended.
    `sizes` are the bytes that the tables have to shrink to, by OID; none unless it is said. With `freeze` each session
    forgets where in these tables it put a row last; it would have the next row there, too, if that fits.
    """
    left = list(relations)
    for wait in (0.0, *waits):
        if not left:
            break
        if wait:
            await asyncio.sleep(wait)
            await flush(connection)
        await connection.execute(vacuum_statement(left, connection.get_server_version().major, freeze=freeze))
        pages = await connection.fetch(PAGES, [each.oid for each in left])
        done = {
            row["oid"] for row in pages if row["visible"] and (sizes is None or row["size"] == sizes.get(row["oid"], 0))
        }
        left = [each for each in left if each.oid not in done]
    return left


def vacuum_statement(relations: Iterable[Relation], major: int, *, freeze: bool) -> str:
    """The statement by which a server of this major version vacuums these relations."""
    names = ", ".join(map(str, relations))
    # https://www.postgresql.org/docs/current/sql-vacuum.html
    more = ", skip_database_stats" if major >= 16 else ""
    # Where all rows are frozen, relfrozenxid moves on each time, of which all sessions are told.
    more += ", freeze" if freeze else ""
    return f"vacuum (index_cleanup on, truncate on, parallel 0{more}) {names}"


def finished_definition(name: str) -> str:
    """The statement that makes the session's function of this name, which `finished_call` calls: its plan is kept."""
    # unnest() of several arrays is syntax, and looked for in pg_catalog only if it is written without.
    body = (
        "begin return pg_catalog.cardinality($1) = (select pg_catalog.count(*)"
        f" from unnest($1, $2) wanted (oid, size) join ({PAGES}) p using (oid, size) where p.visible); end"
    )
    return (
        f"create or replace function pg_temp.{name}(oid[], int8[]) returns bool language plpgsql"
        f" as {quote_literal(body)}"
    )


def finished_call(name: str, vacuuming: Vacuuming) -> str:
    """The statement that tells whether VACUUM has finished with all tables, and they have the size they should."""
    oids = ",".join(str(table.oid) for table in vacuuming.tables)
    sizes = ",".join(str(vacuuming.sizes.get(table.oid, 0)) for table in vacuuming.tables)
    return f"select pg_temp.{name}('{{{oids}}}', '{{{sizes}}}')"
