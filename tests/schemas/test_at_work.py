"""Who is still at work in a set when it is given back is found, whatever it does there; on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from databases import connected, waits_or_is_done
from workshop import Workshop

from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling import engine
from pytest_pgdbm.schemas.recycling.pristine import Pristine, Unrecyclable

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


TIES = {
    "a key": "create table public.theirs (own text, item int references {s}.items on delete cascade);"
    " insert into public.theirs values ('precious', 1)",
    "a rule": "create table public.theirs (own text); insert into public.theirs values ('precious');"
    " create rule r as on delete to {s}.items do also delete from public.theirs;"
    " grant all on public.theirs to public",
}


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
@pytest.mark.parametrize("tie", TIES)
def test_what_is_tied_to_a_set_while_it_is_being_emptied_keeps_its_rows(
    workshop: Workshop, own: bool, tie: str, isolation: str
) -> None:
    async def go() -> None:
        async with workshop.superuser() as other:
            default = f"set default_transaction_isolation = '{isolation}'"
            await other.execute(f"alter database {workshop.database} {default}")
            async with settled(workshop, own=own) as (home, built):
                schema = built.schemas["shop"]
                await other.execute(f"insert into {schema}.items (name) values ('x'); select pg_advisory_lock(4711)")
                _wait_while_looking(home, built)
                recycling = asyncio.ensure_future(home.recycle(built))
                assert not await waits_or_is_done(recycling, other)
                await other.execute(TIES[tie].format(s=schema))
                await other.execute("select pg_advisory_unlock(4711)")
                assert (await recycling).why == "the server said: somebody has tied something to it meanwhile"
                assert await _names(other, built) == ["x"]
                assert await other.fetchval("select own from public.theirs") == "precious"
                await other.execute("drop table public.theirs cascade")

    asyncio.run(go())


FILED = """
create table {{tables.kinds}} (id int primary key, name text);
create table {{tables.filed}} (id int, kind int references {{tables.kinds}}) partition by list (id);
create table {{tables.filed_1}} partition of {{tables.filed}} for values in (1);
"""


def test_a_partition_that_is_attached_before_the_whole_is_truncated_keeps_its_rows(workshop: Workshop) -> None:
    async def go() -> None:
        service = workshop.service("shop", FILED)
        async with workshop.built("shop", {"shop": service}) as (home, built), connected(workshop.url) as other:
            await home.settle_in(built)
            schema = built.schemas["shop"]
            await other.execute(f"insert into {schema}.filed values (1)")
            await other.execute("create table public.theirs (id int, kind int); insert into public.theirs values (7)")
            pristine = home._site.pristine(built)
            oids = "select oid from pg_class where relname = any($1) and relnamespace = $2::regnamespace order by oid"
            kinds, filed = [row["oid"] for row in await other.fetch(oids, ["kinds", "filed"], schema)]
            assert await _truncated(home, pristine, kinds) >= {kinds, filed}
            assert await other.fetchval(f"select count(*) from {schema}.filed") == 0
            await other.execute(f"alter table {schema}.filed attach partition public.theirs for values in (7)")
            with pytest.raises(Unrecyclable, match="attached a partition"):
                await _truncated(home, pristine, kinds)
            assert await other.fetchval("select id from public.theirs") == 7
            await other.execute("drop table public.theirs")
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


async def _truncated(home: Home, pristine: Pristine, oid: int) -> set[int]:
    async with home._site.admin.resetter() as connection:
        return await engine._truncate(connection, pristine, [oid])


def _wait_while_looking(home: Home, built: BuiltSet) -> None:
    """Has the look at the structure wait until nobody else holds the lock 4711."""
    recyclable = home._site._recyclable[built]
    noted = recyclable.pristine.fingerprint
    waits = f"({noted.quick}) || pg_catalog.left(pg_catalog.pg_advisory_xact_lock(4711)::text, 0)"
    recyclable.pristine.fingerprint = noted._replace(quick=waits)
    recyclable.session = -1


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
