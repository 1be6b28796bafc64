"""Which seeded tables are taken for written to, and what that spares; on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling import function

SHOP = """
create table {{tables.users}} (id serial primary key, email text unique, about text);
create table {{tables.orders}} (id serial primary key, user_id int references {{tables.users}});
create table {{tables.keyless}} (what text);
create table {{tables.pages}} (id serial primary key, what text);
create table {{tables.long}} (id serial primary key, what text);
alter table {{tables.long}} alter what set storage external;
insert into {{tables.users}} (email) values ('ann@example.org'), ('bob@example.org');
insert into {{tables.keyless}} values ('x');
insert into {{tables.long}} (what) values (repeat('x', 3000));
insert into {{tables.pages}} (what) select repeat('x', 1000) from generate_series(1, 20);
"""
ALWAYS = {"keyless", "pages", "long"}
"""Without an index, of several pages, with oversized values: nobody can tell."""

MANY = "insert into {s}.users (email) select i || '@example.org' from generate_series(1, 2000) i"

UNDISTURBED: dict[str, Sequence[str]] = {
    "nothing": [],
    "it is read": ["select * from {s}.users", "select * from {s}.users where email = 'ann@example.org'"],
    "rows are locked": ["select * from {s}.users for update"],
    "rows are referred to": ["insert into {s}.orders (user_id) values (1)"],
    "numbers are drawn": ["select nextval('{s}.users_id_seq')"],
    "it is vacuumed and analyzed": ["vacuum {s}.users", "analyze {s}.users", "vacuum (freeze) {s}.users"],
    "what was rolled back is vacuumed": [
        "begin; insert into {s}.users (email) values ('eve'); rollback",
        "vacuum (index_cleanup on) {s}.users",
    ],
}
DISTURBED: dict[str, Sequence[str]] = {
    "a row more": ["insert into {s}.users (email) values ('eve')"],
    "a row less": ["delete from {s}.users where id = 1"],
    "another row": ["update {s}.users set about = 'x' where id = 1"],
    "a row rolled back": ["begin; insert into {s}.users (email) values ('eve'); rollback"],
    "a row rolled back by half": [
        "begin; savepoint one; insert into {s}.users (email) values ('eve'); rollback to one; commit"
    ],
    "rows on new pages rolled back": [f"begin; {MANY}; rollback"],
    "an update rolled back": ["begin; update {s}.users set about = 'x' where id = 1; rollback"],
    "a delete rolled back": ["begin; delete from {s}.users; rollback"],
    "a row that was refused": ["insert into {s}.users (email) values ('ann@example.org')"],
    "indexes that have grown": [f"begin; {MANY}; rollback", "vacuum (index_cleanup on) {s}.users"],
    "an oversized value rolled back": [
        "begin; insert into {s}.users (about) select string_agg(md5(i::text), '') from generate_series(1, 999) i;"
        " rollback",
        "vacuum (index_cleanup on, truncate off) {s}.users",
    ],
    "an index made anew": ["reindex table concurrently {s}.users"],
    "all rows written anew": ["vacuum full {s}.users"],
}


@asynccontextmanager
async def settled(workshop: Workshop, *, own: bool) -> AsyncIterator[tuple[Home, BuiltSet, asyncpg.Connection]]:
    """A set that has been leased and given back before, and the test's connection."""
    async with (
        workshop.built("shop", {"shop": workshop.service("shop", SHOP)}, own=own) as (home, built),
        connected(workshop.url) as connection,
    ):
        await home.settle_in(built)
        assert (await home.recycle(built)).why == ""
        yield home, built, connection
        assert await home.drop([built]) == ([], [])


async def disturbed(home: Home, built: BuiltSet, *, counting: bool = True) -> set[str]:
    known = home._site._recyclable[built]
    async with home._site.admin.resetter() as connection:
        if not counting:
            await connection.execute("set track_counts = off")
        oids = await connection.fetchval(f"select pg_temp.{known.name}_disturbed()")
        if not counting:
            await connection.execute("reset track_counts")
    return {known.pristine.inventory.relations[oid].name for oid in oids}


async def play(connection: asyncpg.Connection, built: BuiltSet, statements: Sequence[str]) -> None:
    for statement in statements:
        with suppress(asyncpg.UniqueViolationError):
            await connection.execute(statement.format(s=built.schemas["shop"]))


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_what_leaves_a_table_alone_is_told_from_what_does_not_be_it_rolled_back(workshop: Workshop, own: bool) -> None:
    async def go() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        async with settled(workshop, own=own) as (home, built, connection):
            for what, statements in {**UNDISTURBED, **DISTURBED}.items():
                await play(connection, built, statements)
                found[what] = await disturbed(home, built)
                assert (await home.recycle(built)).why == "", what
        return found

    found = asyncio.run(go())
    wanted = {**dict.fromkeys(UNDISTURBED, ALWAYS), **dict.fromkeys(DISTURBED, ALWAYS | {"users"})}
    assert found == wanted


def test_a_server_that_does_not_count_is_not_believed(workshop: Workshop) -> None:
    async def go() -> tuple[set[str], set[str]]:
        async with settled(workshop, own=True) as (home, built, _):
            return await disturbed(home, built, counting=False), await disturbed(home, built)

    assert asyncio.run(go()) == (ALWAYS | {"schema_migrations", "users"}, ALWAYS)


def test_what_nobody_has_written_to_is_not_vacuumed(workshop: Workshop) -> None:
    async def go() -> dict[str, int]:
        async with settled(workshop, own=True) as (home, built, connection):
            before = await vacuums(connection, built)
            await play(connection, built, ["insert into {s}.orders (user_id) values (1)"])
            assert (await home.recycle(built)).why == ""
            after = await vacuums(connection, built)
            return {name: after[name] - count for name, count in before.items()}

    assert asyncio.run(go()) == {"users": 0, "schema_migrations": 0, "orders": 1, "keyless": 1, "pages": 1, "long": 1}


def test_what_the_planner_knows_is_as_it_was_though_somebody_has_written_it_by_hand(workshop: Workshop) -> None:
    async def go() -> tuple[float, int]:
        async with settled(workshop, own=True) as (home, built, _), workshop.superuser() as superuser:
            users = f"{built.schemas['shop']}.users"
            await superuser.execute(
                "update pg_class set reltuples = 1e6, relpages = 10000 where oid = $1::text::regclass", users
            )
            assert (await home.recycle(built)).why == ""
            found = await superuser.fetchrow(
                "select reltuples, relpages from pg_class where oid = $1::text::regclass", users
            )
            assert found is not None
            return found["reltuples"], found["relpages"]

    assert asyncio.run(go()) == (2, 1)


async def vacuums(connection: asyncpg.Connection, built: BuiltSet) -> dict[str, int]:
    rows = await connection.fetch(
        "select relname, vacuum_count from pg_stat_all_tables where schemaname = $1", built.schemas["shop"]
    )
    return dict(map(tuple, rows))


@pytest.mark.parametrize("settings", ["select", "set geqo_threshold = 2"])
def test_while_somebody_is_there_nothing_is_done_however_the_server_plans(workshop: Workshop, settings: str) -> None:
    async def go() -> list[int]:
        done = []
        async with connected(workshop.url) as connection:
            await connection.execute(
                f"{settings}; create temporary table done (n int);"
                " create function pg_temp.empty(text, int8, float8, out n int) language plpgsql"
                " as 'begin insert into done values (1); n := 1; end';"
                f" {function.condition_definition('so', 'true')}; {function.condition_definition('not_so', 'null')}"
            )
            for condition in ("so", "not_so"):
                await connection.execute(function.call_with("empty", "", 1, 0.5, condition))
                done.append(await connection.fetchval("select count(*) from done"))
        return done

    assert asyncio.run(go()) == [0, 1]
