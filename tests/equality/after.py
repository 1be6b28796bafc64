"""What a set turns out to be when it is used: the order in which new rows come to lie, and what plans are chosen.

A table that was used before may take a new row into a place that an old one left, where a fresh table has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import asyncpg
from equality.ground import Ground, execute
from equality.vocabulary import DEPOT, SEQUENCES, SHOP, Table

_MANY = ("<depot>.items", "<depot>.documents", "<shop>.bookings", "<shop>.spots", "<shop>.prefixes")

# In the order in which an index yields them. https://www.postgresql.org/docs/current/indexes-ordering.html
_BY_INDEX = [
    "select id from <shop>.bookings where during && '[0,100000)'",
    "select id from <shop>.spots where at <@ box '(0,0),(100,100)'",
    "select id from <shop>.spots order by at <-> point '(50,50)'",
    "select id from <shop>.prefixes where word >= '3'",
    "select id from <depot>.items where code = 'c7'",
    "select id from <depot>.items where lower(name) = 'nnnnn'",
    "select id from <depot>.items where tags @> '{t3}'",
    "select id from <shop>.orders where item > 0",
]

_PLANNED = [
    "select * from <depot>.items where id = 5",
    "select * from <depot>.items where code = 'c7'",
    "select * from <depot>.items where lower(name) = 'n'",
    "select * from <shop>.orders o join <depot>.items i on i.id = o.item",
    "select * from <shop>.orders where item = 3",
    "select * from <shop>.lines l join <shop>.orders o on o.id = l.order_id where l.n = 4",
    "select * from <shop>.bookings where during && '[1,5)'",
    "select * from <depot>.readings where taken > '2020-01-01'",
    "select * from <depot>.readings r join <depot>.suppliers s on s.id = r.id",
    "select * from <depot>.parts where k = 3",
    "select high, count(*) from <depot>.totals group by 1",
]


async def used(ground: Ground, connection: asyncpg.Connection) -> Mapping[str, Sequence[str]]:
    """Writes to the set over this connection, always the same, and returns what has come of it."""
    await ground.quiet()
    # One that came in between would have sequences log anew how far they are, which is seen in `log_cnt`.
    await ground.superuser.execute("checkpoint")
    refused = []
    for program in _programs():
        if said := await execute(connection, ground.sql(program)):
            refused.append(said)
            await connection.execute("rollback")
    rows = await ground.observer.rows()
    sequences = {name: [str(state)] for name, state in (await ground.observer.sequences()).items()}
    return {"refused": refused, **rows, **sequences, **await _by_index(ground, connection)}


async def plans(ground: Ground, connection: asyncpg.Connection) -> Mapping[str, Sequence[str]]:
    """How queries are planned."""
    return {
        query: [line for (line,) in await connection.fetch("explain (costs off) " + ground.sql(query))]
        for query in _PLANNED
    }


def _programs() -> Iterator[str]:
    for number, table in enumerate([*DEPOT, *SHOP]):
        if table.name not in ("<shop>.husbands", "<shop>.wives"):
            yield ";\n".join(_program(table, number % 4))
    yield from (f"select nextval('{name}')" for name in SEQUENCES)


def _program(table: Table, kind: int) -> Iterator[str]:
    """Rows that are inserted, also by transactions that are undone; updated, so that pages are pruned; deleted."""
    yield f"begin; {table.insert(1, 1)}; commit"
    yield f"begin; {table.insert(2, 40)}; rollback"
    yield f"begin; {table.insert(102, 60)}; commit"
    for _ in range(kind * 3):
        yield f"begin; {table.update(2)}; commit"
    yield f"begin; {table.delete(3)}; savepoint a; {table.update(1)}; rollback to a; commit"
    yield f"begin; {table.insert(202, 30)}; commit"
    yield f"begin; {table.update(3, 1)}; commit"
    if table.name in _MANY:
        yield f"begin; {table.insert(1002, 1000)}; commit"
        yield f"begin; {table.update(5)}; commit"
        yield f"begin; {table.delete(7)}; commit"
    yield f"begin; {table.insert(302, 7)}; commit"


async def _by_index(ground: Ground, connection: asyncpg.Connection) -> dict[str, Sequence[str]]:
    await connection.execute("set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off")
    found = {query: [str(tuple(row)) for row in await connection.fetch(ground.sql(query))] for query in _BY_INDEX}
    await connection.execute("reset enable_seqscan; reset enable_bitmapscan; reset enable_sort")
    return found
