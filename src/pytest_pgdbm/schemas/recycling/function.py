"""The function in the server that looks at a set and empties it: one round trip, all static, made for this set.

It lives in the session's temporary schema, so nothing of it is ever in the user's database. It returns before it
touches a row if somebody is still at work in the set, or if its structure is not what it was, and undoes what it did
if that has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_pgdbm.ground.names import quote_literal
from pytest_pgdbm.schemas.holders import is_writing
from pytest_pgdbm.schemas.recycling.inventory import Inventory, Relation
from pytest_pgdbm.schemas.recycling.seeded import SeededRows

MOST_BYTES_TO_DELETE = 1 << 20
"""A table that has grown larger is truncated: deleting and vacuuming cost more from some thousand rows on."""

_HERE = "l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())"

# Whoever ties something to a table after the structure was looked at has it emptied too, by CASCADE or by a rule.
_UNDONE = (
    "raise exception using message = 'somebody has tied something to it meanwhile', errcode = 'serialization_failure'"
)

HELD, UNTOUCHED, CHANGED, EMPTIED = "held", "untouched", "changed", "emptied"


class Found(NamedTuple):
    """What the function tells.

    `state` is HELD, UNTOUCHED, CHANGED or EMPTIED, `reached` the next transaction's number when that was looked at, and
    `calm` whether none was in progress then; `structure` is the look at the catalogs. `dirty` are OIDs of tables that
    had no rows at first and have been written to, `touched` of those whose first rows are not all as they were, `views`
    of materialized views that are not; `large` are the ones among the first two that are to be truncated, the others
    have been emptied. `gained` are tables that only gained rows, and have lost them. `disturbed` are tables that had
    rows at first and may have been written to, be it rolled back, `grown` those of them whose indexes have other sizes
    now.
    """

    state: str
    reached: int
    calm: bool
    structure: str
    dirty: Sequence[int]
    touched: Sequence[int]
    views: Sequence[int]
    large: Sequence[int]
    gained: Sequence[int]
    disturbed: Sequence[int]
    grown: Sequence[int]

    @classmethod
    def told(cls, row: Sequence[str | None]) -> Found:
        """From the function's result as text."""
        state, reached, calm, structure, *oids = (value or "" for value in row)
        return cls(state, int(reached), calm == "t", structure, *map(_read_oids, oids))


def call(name: str) -> str:
    """The statement that calls the function.

    Its parameters are the look at the catalogs that is expected, what `reached` was when the set was looked at last,
    with nothing in progress, and how many seconds ago its test was over.
    """
    return f"select * from pg_temp.{name}($1, $2, $3)"


def call_with(name: str, expected: str, since: int, over: float, unless: str | None) -> str:
    """The same with these values; nothing is done, and no row yielded, where the function called `unless` says true."""
    if unless is None:
        return f"select * from pg_temp.{name}({quote_literal(expected)}, {since}, {over!r})"
    # The call needs what it is to come after: the server might begin with either of two that are not tied.
    since_then = f"case when it.so then null else {since} end"
    call = f"pg_temp.{name}({quote_literal(expected)}, {since_then}, {over!r})"
    return f"select found.* from (select pg_temp.{unless}() as so) it, lateral {call} found where not it.so"


def condition_definition(name: str, condition: str) -> str:
    """The statement that makes the session's function of this name, which yields whether the SQL condition is true."""
    body = quote_literal(f"begin return {condition} is true; end")
    return f"create or replace function pg_temp.{name}() returns bool language plpgsql as {body}"


def definition(
    name: str,
    inventory: Inventory,
    seeded: Mapping[int, SeededRows],
    indexes: Mapping[int, int],
    values: Mapping[int, tuple[int, bool]],
    objects: Collection[int],
    look: str,
    disturbed: str,
) -> str:
    """The statement that makes the function.

    `indexes` are the bytes of the indexes of seeded relations, `values` those of the sequences, `objects` the OIDs of
    all that the set consists of, `look` is the SQL of the look, `disturbed` that of the OIDs of seeded tables that may
    have been written to.
    """
    body = "\n".join(_body(inventory, seeded, indexes, values, objects, look, disturbed))
    return (
        f"create or replace function pg_temp.{name}(expected text, since int8, ago float8,"
        " out state text, out reached int8, out calm bool, out structure text,"
        " out dirty oid[], out touched oid[], out views oid[], out large oid[], out gained oid[],"
        " out disturbed oid[], out grown oid[])"
        f" language plpgsql as {quote_literal(body)}"
    )


def _body(
    inventory: Inventory,
    seeded: Mapping[int, SeededRows],
    indexes: Mapping[int, int],
    values: Mapping[int, tuple[int, bool]],
    objects: Collection[int],
    look: str,
    disturbed: str,
) -> Iterator[str]:
    empty = [table for table in inventory.tables if table.oid not in seeded]
    filled = [table for table in inventory.tables if table.oid in seeded]
    yield "declare n bigint; k bigint; held bool; writing bool; now pg_snapshot = pg_catalog.pg_current_snapshot();"
    yield "begin dirty := '{}'; touched := '{}'; views := '{}'; large := '{}'; gained := '{}';"
    yield "disturbed := '{}'; grown := '{}';"
    yield "reached := pg_catalog.pg_snapshot_xmax(now)::text::int8;"
    yield "calm := pg_catalog.pg_snapshot_xmin(now) = pg_catalog.pg_snapshot_xmax(now);"
    yield f"{_at_work(objects)};"
    yield f"if writing then writing := {_written()}; end if;"
    yield f"if held or writing then state := '{HELD}'; return; end if;"
    yield from _sequences([each for each in inventory.sequences if each.unlogged], values)
    yield _untouched()
    yield f"structure := {look};"
    yield f"if structure is distinct from expected then state := '{CHANGED}'; return; end if;"
    if empty:
        yield f"dirty := {_with_pages(empty)};"
    for table in filled:
        yield _compared(table, seeded[table.oid], lost="touched", gained="touched" if table.deleting else "gained")
    if not inventory.superuser:
        yield from _referring_too(filled)
    yield from _views(inventory.views, seeded)
    yield f"large := {_large(inventory)};"
    if filled:
        yield f"disturbed := {disturbed}; grown := {_with_grown_indexes(filled, indexes)};"
    for group in inventory.groups:
        yield _emptied(group, seeded)
    hooks = sum(table.hooks for table in inventory.tables)
    yield f"if dirty || touched || gained <> '{{}}' and {_hooks(inventory)} <> {hooks} then {_UNDONE}; end if;"
    yield from _sequences([each for each in inventory.sequences if not each.unlogged], values)
    yield f"state := '{EMPTIED}'; end"


def _at_work(objects: Collection[int]) -> str:
    # Making a table locks its schema, and a transaction that was prepared has locks and no process. Whatever has
    # written something, anywhere on the server, has a lock on its own number:
    # https://www.postgresql.org/docs/current/view-pg-locks.html
    oids = _oids(objects)
    return (
        "select"
        f" pg_catalog.bool_or(l.relation = any({oids}) and {_HERE}"
        f" or l.locktype = 'object' and l.objid = any({oids}) and {_HERE}),"
        " pg_catalog.bool_or(l.locktype = 'transactionid')"
        " into held, writing from pg_catalog.pg_locks l"
        " where l.granted and l.pid is distinct from pg_catalog.pg_backend_pid()"
    )


def _written() -> str:
    return f"exists (select from pg_catalog.pg_stat_activity a where {is_writing('ago')})"


def _hooks(inventory: Inventory) -> str:
    """How many triggers and rules there are on the tables: a foreign key to one of them has some, too."""
    oids = _oids(table.oid for table in inventory.tables)
    return (
        f"(select pg_catalog.count(*) from pg_catalog.pg_trigger where tgrelid = any({oids}))"
        f" + (select pg_catalog.count(*) from pg_catalog.pg_rewrite where ev_class = any({oids}))"
    )


def _with_pages(relations: Sequence[Relation]) -> str:
    oids = _oids(each.oid for each in relations)
    return f"array(select o from pg_catalog.unnest({oids}) o where pg_catalog.pg_relation_size(o) > 0)"


def _with_grown_indexes(relations: Sequence[Relation], indexes: Mapping[int, int]) -> str:
    noted = ", ".join(f"({each.oid}::oid, {indexes[each.oid]}::int8)" for each in relations)
    # Joined, so that only those are looked at.
    return (
        f"array(select n.o from pg_catalog.unnest(disturbed) d join (values {noted}) n (o, size) on n.o = d"
        " where pg_catalog.pg_indexes_size(n.o) <> n.size)"
    )


def _compared(relation: Relation, rows: SeededRows, *, lost: str, gained: str) -> str:
    return (
        f"select count(*), count(*) filter (where xmin = any({_writers(rows)})) into n, k from only {relation};"
        f" if k <> {rows.number} then {lost} := {lost} || {relation.oid}::oid;"
        f" elsif n <> k then {gained} := {gained} || {relation.oid}::oid; end if;"
    )


def _referring_too(filled: Sequence[Relation]) -> Iterator[str]:
    """Without the rights of a replica, rows that others refer to can only go after those."""
    for table in reversed(filled):
        if table.refers_to:
            yield (
                f"if touched && {_oids(table.refers_to)} and not {table.oid} = any(touched)"
                f" then touched := touched || {table.oid}::oid; end if;"
            )


def _views(views: Sequence[Relation], seeded: Mapping[int, SeededRows]) -> Iterator[str]:
    empty = [view for view in views if view.oid not in seeded]
    if empty:
        yield f"views := {_with_pages(empty)};"
    for view in views:
        if view.oid in seeded:
            yield _compared(view, seeded[view.oid], lost="views", gained="views")


def _large(inventory: Inventory) -> str:
    not_deleted = _oids(table.oid for table in inventory.tables if table.deleting or table.filtered)
    return (
        "array(select o from pg_catalog.unnest(dirty || touched) o"
        f" where pg_catalog.pg_relation_size(o) > {MOST_BYTES_TO_DELETE} or o = any({not_deleted}))"
    )


def _emptied(group: Sequence[Relation], seeded: Mapping[int, SeededRows]) -> str:
    oids = _oids(table.oid for table in group)
    first, *others = (_deletion(table, seeded.get(table.oid)) for table in group)
    ring = "with " + ", ".join(f"d{number} as ({other})" for number, other in enumerate(others)) if others else ""
    return f"if (dirty || touched || gained) && {oids} and not large && {oids} then {ring} {first}; end if;"


def _deletion(table: Relation, rows: SeededRows | None) -> str:
    which = f" where {table.oid} = any(touched) or xmin <> all({_writers(rows)})" if rows else ""
    return f"delete from only {table}{which}"


def _untouched() -> str:
    # Whatever writes takes a number, be it rolled back later; so does nextval() the first time after setval().
    # https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
    return f"if reached = since and calm then state := '{UNTOUCHED}'; return; end if;"


def _sequences(sequences: Sequence[Relation], values: Mapping[int, tuple[int, bool]]) -> Iterator[str]:
    if not sequences:
        return
    moved = (
        f"exists (select from {each} where last_value <> {values[each.oid][0]} or is_called <> {values[each.oid][1]}"
        " or log_cnt <> 0)"
        for each in sequences
    )
    calls = (f"pg_catalog.setval({each.oid}, {values[each.oid][0]}, {values[each.oid][1]})" for each in sequences)
    yield f"if {' or '.join(moved)} then perform {', '.join(calls)}; end if;"


def _writers(rows: SeededRows) -> str:
    return f"'{{{','.join(map(str, rows.writers))}}}'::xid[]"


def _read_oids(text: str) -> Sequence[int]:
    return [int(oid) for oid in text.strip("{}").split(",") if oid]


def _oids(oids: Collection[int] | Iterator[int]) -> str:
    return f"'{{{','.join(map(str, oids))}}}'::oid[]"
