"""The function in the server that tells which tables with rows may have been written to: the others need no VACUUM.

What was rolled back leaves no row behind, but takes the mark from its page that all rows there are visible to all. An
index-only scan looks into the table wherever that mark is missing, and the server counts how often it does:
https://www.postgresql.org/docs/current/indexes-index-only-scans.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_pgdbm.ground.names import quote_literal
from pytest_pgdbm.schemas.recycling.inventory import Relation
from pytest_pgdbm.schemas.recycling.seeded import SeededRows


def definition(
    name: str, tables: Sequence[Relation], seeded: Mapping[int, SeededRows], indexes: Mapping[int, int]
) -> str:
    """The statement that makes the session's function of this name, which `call` calls.

    It returns the OIDs of those of the tables that need not be as VACUUM has left them, when they held the `seeded`
    rows and their indexes had so many bytes.
    """
    body = "\n".join(_body(tables, seeded, indexes))
    return (
        f"create or replace function pg_temp.{name}(out disturbed oid[]) language plpgsql"
        f" set enable_seqscan = off set enable_bitmapscan = off as {quote_literal(body)}"
    )


def call(name: str) -> str:
    """The expression that calls it."""
    return f"pg_temp.{name}()"


def _body(tables: Sequence[Relation], seeded: Mapping[int, SeededRows], indexes: Mapping[int, int]) -> Iterator[str]:
    yield "declare n int8; entries int8; looks int8; begin disturbed := '{}';"
    for table in tables:
        yield from _compared(table, seeded[table.oid], indexes[table.oid])
    yield "end"


def _compared(table: Relation, rows: SeededRows, indexes: int) -> Iterator[str]:
    undisturbed = ["false"]
    if _can_tell(table, rows):
        entries, looks = _counted("returned", table.indexes), _counted("fetched", (table.oid, *table.indexes))
        yield f"entries := {entries}; looks := {looks}; select pg_catalog.count(*) into n from only {table};"
        undisturbed = [
            f"n = {rows.number}",
            # Had they been found in another way, or did the server not count, the index would not have given as many.
            f"{entries} - entries = n",
            f"{looks} = looks",
            *_as_large(table, rows),
            f"pg_catalog.pg_indexes_size({table.oid}) = {indexes}",
            _known_as(table, rows),
        ]
    yield f"if ({' and '.join(undisturbed)}) is not true then disturbed := disturbed || {table.oid}::oid; end if;"


def _can_tell(table: Relation, rows: SeededRows) -> bool:
    """Whether there is an index to go by, and the rows are on one page.

    Of more pages it matters, too, on which a session has last put a row that was rolled back, and of that no trace is
    left if the test has vacuumed them.
    """
    return bool(table.indexes and rows.number and not rows.spread)


def _as_large(table: Relation, rows: SeededRows) -> Iterator[str]:
    """That there are no more pages. What is in those of oversized values nobody tells, so there are to be none."""
    yield f"pg_catalog.pg_relation_size({table.oid}) = {rows.size}"
    if table.toast:
        yield f"pg_catalog.pg_relation_size({table.toast}) = 0"


def _known_as(table: Relation, rows: SeededRows) -> str:
    """That the planner knows it as VACUUM would tell it."""
    return (
        "exists (select from pg_catalog.pg_class c"
        f" where c.oid = {table.oid} and c.relpages = 1 and c.reltuples = {rows.number})"
    )


def _counted(what: str, oids: Sequence[int]) -> str:
    """How often something has been done with these relations in the transaction."""
    # https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-FUNCTIONS
    return " + ".join(f"pg_catalog.pg_stat_get_xact_tuples_{what}({oid}::oid)" for oid in oids)
