"""What is hard to put back, one thing at a time; the machine may take long to come upon it."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest
from equality.after import plans, used
from equality.ground import CLEAN_AT_RELEASE, Ground, execute
from equality.grounds import SIMPLE, Yard, server_of, yard_on
from equality.vocabulary import Cost

from pytest_pgdbm.connections import login

ITEMS = "insert into <depot>.items (code, name) select 'c' || i, 'n' from generate_series(1, 3000) i"
ORDERS = "insert into <shop>.orders (item) select id from <depot>.items"

ADDED = "insert into <depot>.documents (id, body) select 1000 + i, repeat('d', i % 900) from generate_series(1, 200) i"

LONG = "insert into <depot>.documents (id, body) values (4439, repeat('d', 740)), (4440, repeat('d', 740))"

PROGRAMS: dict[str, tuple[Cost, list[str]]] = {
    "seeds deleted, and the same put in in another order": (
        "never",
        [
            "create temp table kept as select * from <shop>.counters",
            "truncate <shop>.counters",
            "insert into <shop>.counters select * from kept order by n desc",
        ],
    ),
    "seeds in another order on disk": ("never", ["cluster <depot>.clustered"]),
    "seeds changed and in another order": (
        "never",
        ["update <depot>.clustered set v = v || 'x'", "cluster <depot>.clustered"],
    ),
    "seeds frozen": (
        "never",
        ["vacuum (freeze) <depot>.readings", "update <depot>.readings set value = 9 where id = 1", "vacuum (freeze)"],
    ),
    "seeds locked": (
        "never",
        [
            "begin; select * from <depot>.documents for update; commit",
            "begin; select * from <shop>.counters for key share; update <shop>.counters set n = 1; rollback",
        ],
    ),
    "rows added to seeds, so that indexes get more pages": ("never", [ADDED]),
    "the same rolled back": ("never", [f"begin; {ADDED}; rollback"]),
    "the same after the seeds were deleted, rolled back": (
        "never",
        [f"begin; delete from <depot>.documents; {ADDED}; rollback"],
    ),
    "seeds written by a savepoint": (
        "never",
        [
            "begin; insert into <shop>.counters values ('q', 1); savepoint a; update <shop>.counters set n = 2"
            " where name = 'a'; rollback to a; savepoint b; insert into <shop>.counters values ('r', 1); commit",
        ],
    ),
    "seeds without the values of a column that came later": (
        "never",
        ["update <depot>.documents set added = 'x' where id % 2 = 0", "vacuum full <depot>.documents"],
    ),
    "rows of the migrations' table": (
        "never",
        [
            "delete from <depot>.schema_migrations where id = 2",
            "update <shop>.schema_migrations set module_name = 'x'",
        ],
    ),
    "rows without columns": (
        "never",
        ["insert into <depot>.nothing default values", "delete from <depot>.nothing"],
    ),
    "seeds gone and their pages": ("never", ["delete from <depot>.readings", "vacuum <depot>.readings"]),
    "an empty table truncated": ("never", ["truncate <depot>.items cascade"]),
    "a full table truncated": ("never", [ITEMS, ORDERS, "truncate <depot>.items cascade"]),
    "a large table": ("never", [ITEMS.replace("3000", "20000")]),
    "many rows and statistics of them": ("never", [ITEMS, ORDERS, "analyze"]),
    "many rows in trees": (
        "never",
        [
            "insert into <shop>.spots (at) select point(i * 37 % 100, i * 91 % 101) from generate_series(1, 3000) i",
            "insert into <shop>.prefixes (word) select md5(i::text) from generate_series(1, 3000) i",
            "insert into <shop>.bookings (during) select int4range(i * 10, i * 10 + 5) from generate_series(1, 3000) i",
        ],
    ),
    "pages reused": (
        "never",
        [
            ITEMS,
            "delete from <depot>.items",
            "vacuum <depot>.items",
            ITEMS.replace("'c'", "'d'"),
            "delete from <depot>.items where id % 2 = 0",
        ],
    ),
    "an old snapshot elsewhere": (
        "never",
        [
            "snapshot",
            ITEMS,
            "update <depot>.readings set value = 1",
            "delete from <shop>.counters",
            "begin; insert into <depot>.visits (what) values ('x'); rollback",
        ],
    ),
    "materialized views made again": (
        "never",
        ["refresh materialized view <depot>.totals", "refresh materialized view concurrently <depot>.totals"],
    ),
    "materialized views with rows": (
        "never",
        [ITEMS, "refresh materialized view <depot>.no_rows", "refresh materialized view <shop>.popular"],
    ),
    "a materialized view that was stale": ("any", ["refresh materialized view <depot>.stale"]),
    "a materialized view that was empty, and stale": ("any", ["refresh materialized view <depot>.too_early"]),
    "a table made again": (
        "any",
        [
            "drop table <depot>.keyless; create table <depot>.keyless (a int, b text)",
            "insert into <depot>.keyless values (1, 'x')",
        ],
    ),
    "a view made again that holds rows": (
        "any",
        [
            "drop materialized view <depot>.no_rows; insert into <depot>.items (code) values ('z')",
            "create materialized view <depot>.no_rows as select code, stock from <depot>.items",
        ],
    ),
    "a sequence made again": (
        "any",
        [
            "drop sequence <depot>.turns; create sequence <depot>.turns minvalue 1 maxvalue 5 cycle",
            "select nextval('<depot>.turns')",
        ],
    ),
    "a foreign key made again": (
        "any",
        [
            "alter table <shop>.orders drop constraint orders_item_fkey; alter table <shop>.orders"
            " add foreign key (item) references <depot>.items (id) on delete cascade on update cascade",
            ITEMS,
            ORDERS,
        ],
    ),
    "an index made again": (
        "never",
        ["drop index <depot>.items_hash; create index items_hash on <depot>.items using hash (code)", ITEMS],
    ),
    "an index that could not be made": (
        "any",
        [
            "insert into <depot>.items (code, note) values ('a', 'x'), ('b', 'x')",
            "create unique index concurrently bad on <depot>.items (note)",
        ],
    ),
    "unlogged for a while": (
        "any",
        [
            "alter table <depot>.keyless set unlogged",
            "insert into <depot>.keyless values (1)",
            "alter table <depot>.keyless set logged",
        ],
    ),
    "a partition away for a while": (
        "any",
        [
            "alter table <depot>.parts detach partition <depot>.parts_mid; alter table <depot>.parts"
            " attach partition <depot>.parts_mid for values from (10) to (20)",
            "insert into <depot>.parts (k) values (12)",
        ],
    ),
    "rows that no foreign key allows": (
        "ordinary",
        [
            "superuser set session_replication_role = replica; insert into <shop>.orders (item) values (4711);"
            " insert into <shop>.invoices (order_id) values (1234); delete from <shop>.hens;"
            " delete from <depot>.suppliers where id = 5011",
        ],
    ),
    "a table elsewhere that inherits": ("any", ["superuser create table public.child () inherits (<depot>.animals)"]),
    "a temporary table that inherits": (
        "never",
        ["create temp table child () inherits (<depot>.animals); insert into child (name) values ('x')"],
    ),
    "a temporary table that is like another": (
        "never",
        ["create temp table like_it (like <depot>.items including all)"],
    ),
    "a temporary table with a trigger": (
        "never",
        ["create temp table t (v text); create trigger t before insert on t execute function <shop>.noted()"],
    ),
    "numbers of a sequence kept in a session": ("never", ["select nextval('<depot>.tickets')"]),
}


class Bench:
    """A yard, and what its set was like when it was first used."""

    def __init__(self, yard: Yard, *, own: bool) -> None:
        self.yard = yard
        self.own = own
        self.first = yard.do(self._first())

    async def _first(self) -> dict[str, list[str]]:
        ground = self.yard.ground
        await ground.restore()
        return await observed(ground)


async def observed(ground: Ground, *, planned: bool = True) -> dict[str, list[str]]:
    """How the set is planned with and used."""
    connection = ground.connections[0]
    if not planned:
        return dict(await used(ground, connection))
    before = {f"at first: {query}": lines for query, lines in (await plans(ground, connection)).items()}
    return {**before, **await used(ground, connection), **await plans(ground, connection)}


@pytest.fixture(scope="module", params=[True, False], ids=["superuser", "ordinary role"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), SIMPLE, own=request.param) as yard:
        yield Bench(yard, own=request.param)


async def run(ground: Ground, statement: str) -> asyncpg.Connection | None:
    """Runs it; returns a connection that is to be closed when the set was given back."""
    server = ground.workshop.own
    if statement == "snapshot":
        other = await asyncpg.connect(login.dsn(server, ground.database, server.admin))
        await other.execute("begin isolation level repeatable read; select count(*) from pg_class")
        return other
    if statement.startswith("superuser "):
        other = await asyncpg.connect(login.dsn(server, ground.database, server.admin))
        assert await execute(other, ground.sql(statement.removeprefix("superuser "))) == ""
        return other
    refusal = await execute(ground.connections[0], ground.sql(statement))
    assert not refusal or "concurrently bad" in statement, refusal
    return None


def test_a_session_goes_on_where_a_new_one_would(bench: Bench) -> None:
    """Not at the page of an earlier test's last row: https://www.postgresql.org/docs/current/storage-fsm.html."""

    async def go(ground: Ground) -> None:
        await ground.restore(surely=False)
        for statement in ("update <depot>.documents set body = body || 'z'", f"begin; {LONG}; rollback"):
            assert await run(ground, statement) is None
            await execute(ground.connections[0], CLEAN_AT_RELEASE)
            assert await ground.recycle() == ""
            await ground.clean()
        now = await observed(ground)
        assert {what: now[what] for what in now if now[what] != bench.first[what]} == {}

    bench.yard.do(go(bench.yard.ground))


@pytest.mark.parametrize("awaited", [False, True], ids=["nobody waits", "awaited"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_put_back_or_built_anew(bench: Bench, name: str, awaited: bool) -> None:
    cost, statements = PROGRAMS[name]

    async def go(ground: Ground) -> str:
        await ground.restore(surely=False)
        ground.engine.awaited = awaited
        others = [other for statement in statements if (other := await run(ground, statement))]
        await execute(ground.connections[0], CLEAN_AT_RELEASE)
        why = await ground.recycle()
        for other in others:
            await other.close()
        if not why:
            await ground.clean()
            assert await ground.differences() == []
            # Statistics stay, as the documents say, and plans follow them.
            now = await observed(ground, planned="analyze" not in statements)
            assert {what: now[what] for what in now if now[what] != bench.first[what]} == {}
        return why

    why = bench.yard.do(go(bench.yard.ground))
    assert not why or cost == "any" or (cost == "ordinary" and not bench.own), why
