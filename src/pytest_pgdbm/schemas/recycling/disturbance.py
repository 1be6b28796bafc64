"""The function in the server that tells which tables with rows may have been written to: the others need no VACUUM.

What was rolled back leaves no row behind, but takes the mark from its page that all rows there are visible to all. An
index-only scan looks into the table wherever that mark is missing, and the server counts how often it does:
https://www.postgresql.org/docs/current/indexes-index-only-scans.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import asyncpg

from pytest_pgdbm.ground.names import quote_literal
from pytest_pgdbm.schemas.recycling.inventory import Relation
from pytest_pgdbm.schemas.recycling.seeded import SeededRows

_SIZES = """
select c.oid, pg_catalog.pg_relation_size(c.oid) from pg_catalog.pg_class c where c.oid = any($1::oid[])
"""


async def read_sizes(connection: asyncpg.Connection, tables: Sequence[Relation]) -> dict[int, int]:
    """The bytes of each file of these tables by OID: that of the rows, that of oversized values, those of indexes.

    Files that have been made anew since the tables were looked at are not among them.
    """
    return dict(map(tuple, await connection.fetch(_SIZES, [oid for table in tables for oid in _files(table)])))


def definition(
    name: str, tables: Sequence[Relation], seeded: Mapping[int, SeededRows], sizes: Mapping[int, int]
) -> str:
    """The statement that makes the session's function of this name, which `call` calls.

    It returns the OIDs of those of the tables that need not be as VACUUM has left them, when they held the `seeded`
    rows in files of these `sizes`.
    """
    body = "\n".join(_body(tables, seeded, sizes))
    return (
        f"create or replace function pg_temp.{name}(out disturbed oid[]) language plpgsql"
        f" set enable_seqscan = off set enable_bitmapscan = off as {quote_literal(body)}"
    )


def call(name: str) -> str:
    """The expression that calls it."""
    return f"pg_temp.{name}()"


def _body(tables: Sequence[Relation], seeded: Mapping[int, SeededRows], sizes: Mapping[int, int]) -> Iterator[str]:
    untold = [table for table in tables if not _can_tell(table, seeded[table.oid], sizes)]
    yield "declare n int8; entries int8; looks int8;"
    yield f"begin disturbed := '{{{','.join(str(table.oid) for table in untold)}}}';"
    for table in tables:
        if table not in untold:
            yield _compared(table, seeded[table.oid].number, sizes)
    yield "end"


def _can_tell(table: Relation, rows: SeededRows, sizes: Mapping[int, int]) -> bool:
    """Whether there is an index to go by, all files are known, and the rows are on one page, with no oversized values.

    Of more pages it matters, too, on which a session has last put a row that was rolled back, and of that no trace is
    left if the test has vacuumed them. What is in the pages of oversized values nobody tells.
    """
    if not table.indexes or rows.spread or not rows.number or not sizes.keys() >= set(_files(table)):
        return False
    return not table.toast or sizes[table.toast] == 0


def _compared(table: Relation, number: int, sizes: Mapping[int, int]) -> str:
    # If the rows were found in another way, or if the server does not count, the index has not given as many entries.
    entries = _counted("returned", table.indexes)
    looks = _counted("fetched", (table.oid, *table.indexes))
    as_large = (f"pg_catalog.pg_relation_size({oid}) = {sizes[oid]}" for oid in _files(table))
    return (
        f"entries := {entries}; looks := {looks}; select pg_catalog.count(*) into n from only {table};"
        f" if (n = {number} and {entries} - entries = n and {looks} = looks and {' and '.join(as_large)}) is not true"
        f" then disturbed := disturbed || {table.oid}::oid; end if;"
    )


def _counted(what: str, oids: Sequence[int]) -> str:
    """How often something has been done with these relations in the transaction."""
    # https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-FUNCTIONS
    return " + ".join(f"pg_catalog.pg_stat_get_xact_tuples_{what}({oid}::oid)" for oid in oids)


def _files(table: Relation) -> Sequence[int]:
    return [oid for oid in (table.oid, table.toast, *table.indexes) if oid]
