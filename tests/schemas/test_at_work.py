"""Who is still at work in a set when it is given back is found, whatever it does there; on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling import engine

SHOP = """
create type {{schema}}.mood as enum ('a', 'b');
create domain {{schema}}.small as int check (value < 10);
create domain {{schema}}.large as int;
create function {{schema}}.f() returns int language sql as 'select 1';
create table {{tables.items}} (id serial primary key, name text, feeling {{schema}}.mood);
create statistics {{schema}}.st on id, name from {{tables.items}};
create view {{schema}}.named as select name from {{tables.items}};
create text search configuration {{schema}}.words (copy = pg_catalog.english);
"""

UNCOMMITTED = """
insert into {s}.items (name) values ('x')
select nextval('{s}.items_id_seq')
create table {s}.more (x int)
alter type {s}.mood add value 'c'
alter type {s}.mood rename value 'a' to 'z'
alter type {s}.mood rename to humour
comment on type {s}.mood is 'x'
revoke usage on type {s}.mood from public
create or replace function {s}.f() returns int language sql as 'select 2'
alter function {s}.f() immutable
alter function {s}.f() set work_mem = '1MB'
drop function {s}.f()
comment on function {s}.f() is 'x'
revoke execute on function {s}.f() from public
alter domain {s}.large add check (value > 0)
alter domain {s}.small drop constraint small_check
alter domain {s}.small set default 5
alter statistics {s}.st set statistics 5
drop statistics {s}.st
alter index {s}.items_pkey rename to other
alter text search configuration {s}.words alter mapping for word with pg_catalog.simple
alter default privileges in schema {s} grant select on tables to public
create view public.of_it as select null::{s}.mood as feeling
comment on schema {s} is 'x'
"""


@asynccontextmanager
async def settled(workshop: Workshop, *, own: bool = False) -> AsyncIterator[tuple[Home, BuiltSet]]:
    async with workshop.built("shop", {"shop": workshop.service("shop", SHOP)}, own=own) as (home, built):
        await home.settle_in(built)
        assert (await home.recycle(built)).why == ""
        yield home, built
        assert await home.drop([built]) == ([], [])


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_what_is_not_committed_yet_is_found(workshop: Workshop, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HOLDERS_WAIT", 0.0)

    async def go() -> None:
        async with settled(workshop, own=own) as (home, built), connected(workshop.url) as left:
            for statement in UNCOMMITTED.strip().splitlines():
                await left.execute("begin; " + statement.format(s=built.schemas["shop"]))
                assert (statement, (await home.recycle(built)).why) != (statement, "")
                await left.execute("rollback")
                assert (statement, (await home.recycle(built)).why) == (statement, "")

    asyncio.run(go())


def test_who_has_written_something_and_holds_no_lock_is_named(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built), connected(workshop.url) as left:
            schema = built.schemas["shop"]
            await left.execute(f"set application_name = 'a reader'; begin; alter function {schema}.f() immutable")
            recycled = await home.recycle(built)
            pid = left.get_server_pid()
            assert f"server process {pid} ('a reader' of role" in recycled.why
            assert [(each.pid, each.writing, each.left_behind) for each in recycled.holders] == [(pid, True, False)]
            await left.execute("rollback")

    asyncio.run(go())


def test_what_began_after_the_test_is_the_next_ones(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built):
            over = time.monotonic()
            async with connected(workshop.url) as following:
                await following.execute("begin; select pg_current_xact_id()")
                assert (await home.recycle(built, over)).why == ""
                assert "has written something" in (await home.recycle(built)).why
                await following.execute("rollback")

    asyncio.run(go())


async def _names(connection: asyncpg.Connection, built: BuiltSet) -> object:
    return await connection.fetchval(f"select array_agg(name) from {built.schemas['shop']}.items")


def test_what_is_written_before_another_set_is_looked_at_is_found(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built), connected(workshop.url) as late:
            another = await home.build(built.plan, ())
            await home.settle_in(another)
            assert (await home.recycle(built)).why == ""
            await late.execute(f"insert into {built.schemas['shop']}.items (name) values ('late')")
            assert (await home.recycle(another)).why == ""
            assert (await home.recycle(built)).why == ""
            assert await _names(late, built) is None
            assert await home.drop([another]) == ([], [])

    asyncio.run(go())


def test_what_an_older_transaction_writes_is_found(workshop: Workshop) -> None:
    async def go() -> None:
        async with (
            settled(workshop) as (home, built),
            connected(workshop.url) as old,
            connected(workshop.url) as newer,
        ):
            # As a connection of the pool calls itself, which a wider fixture holds.
            await old.execute("set application_name = 'pgdbm 0123456789 main pool'; begin; select pg_current_xact_id()")
            await newer.execute("select pg_current_xact_id()")
            assert (await home.recycle(built)).why == ""
            await old.execute(f"insert into {built.schemas['shop']}.items (name) values ('old'); commit")
            assert (await home.recycle(built)).why == ""
            assert await _names(old, built) is None

    asyncio.run(go())
