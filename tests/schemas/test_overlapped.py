"""Sets that come back by messages that nobody waits for, and what goes on in the private loop; on a real server."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest
from databases import connected
from workshop import Workshop, hear

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling import engine
from pytest_pgdbm.schemas.recycling.function import EMPTIED, MOST_BYTES_TO_DELETE, Found
from pytest_pgdbm.schemas.recycling.overlapped import MOST_VACUUMS

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="without epoll there is no line")

SHOP = """
create table {{tables.users}} (id serial primary key, email text unique);
create table {{tables.orders}} (id serial primary key, user_id int references {{tables.users}}, note text);
create table {{tables.spots}} (at point);
create index spots_at on {{tables.spots}} using gist (at);
create materialized view {{schema}}.counted as select count(*) from {{tables.users}};
"""
SEED = {"users": [{"email": "ann@example.org"}, {"email": "bob@example.org"}]}
SECONDS = 30.0
ALL = """
select (select array_agg((id, email, ctid) order by id)::text from {s}.users) as users,
    (select array_agg(o) from {s}.orders o) as orders, (select array_agg(p::text) from {s}.spots p) as spots,
    (select array_agg(count) from {s}.counted) as counted, pg_relation_size('{s}.orders') as size,
    (select (last_value, is_called)::text from {s}.users_id_seq) as users_seq,
    (select (last_value, is_called)::text from {s}.orders_id_seq) as orders_seq
"""

Said = list[tuple[bool, "Found | None"]]


@asynccontextmanager
async def settled(workshop: Workshop, *, own: bool = False) -> AsyncIterator[tuple[Home, BuiltSet, asyncpg.Connection]]:
    """A set that has been leased and given back before, and somebody else's connection."""
    service = workshop.service("shop", SHOP, seed=SEED)
    async with (
        workshop.built("shop", {"shop": service}, own=own) as (home, built),
        connected(workshop.url) as other,
    ):
        await home.settle_in(built)
        assert (await home.recycle(built)).why == ""
        yield home, built, other
        assert await home.drop([built]) == ([], [])


def begin(home: Home, built: BuiltSet) -> Said:
    """Begins to give a set back; the list has what came of it, once it is told."""
    said: Said = []
    assert home.begin(built, time.monotonic(), lambda *told: said.append(told))
    return said


def go_on(home: Home, *coming: Said) -> None:
    """Goes on until of all of these something has come."""
    while not all(coming):
        home.go_on()
        line = home._site.admin.with_line(lambda line: line)
        assert line is not None
        if line.is_busy and not all(coming):
            select.select([line._socket], [], [], SECONDS)


def come_back(home: Home, built: BuiltSet) -> tuple[bool, Found | None]:
    said = begin(home, built)
    go_on(home, said)
    home.go_on()
    (only,) = said
    return only


async def lend_again(home: Home) -> None:
    """As after any work that ended well."""
    async with home._site.admin.resetter():
        pass


async def content(other: asyncpg.Connection, built: BuiltSet) -> dict[str, object]:
    row = await other.fetchrow(ALL.format(s=built.schemas["shop"]))
    assert row is not None
    return dict(row)


async def work(other: asyncpg.Connection, built: BuiltSet, statement: str) -> None:
    await other.execute(statement.format(s=built.schemas["shop"]))


PLAIN = {
    "nothing": "select",
    "rows": "insert into {s}.orders (user_id, note) select 1, repeat('x', 100) from generate_series(1, 500)",
    "more rows": "insert into {s}.users (email) values ('eve@example.org'), ('mallory@example.org')",
    "both": "insert into {s}.users (email) values ('eve'); insert into {s}.orders (user_id) values (3)",
    "rolled back": "begin; insert into {s}.orders (user_id) values (1); rollback",
    "numbers": "select nextval('{s}.orders_id_seq') from generate_series(1, 5)",
    "rows that went": "insert into {s}.orders (user_id) values (1); delete from {s}.orders",
}


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_what_nearly_every_test_does_is_undone_without_anybody_waiting(workshop: Workshop, own: bool) -> None:
    async def go() -> None:
        async with settled(workshop, own=own) as (home, built, other):
            first = await content(other, built)
            for _ in range(2):
                for what, statement in PLAIN.items():
                    await work(other, built, statement)
                    assert (what, come_back(home, built)) == (what, (True, None))
                    assert (what, await content(other, built)) == (what, first)
            assert come_back(home, built) == (True, None)
            assert (await home.recycle(built)).why == ""
            assert await content(other, built) == first

    asyncio.run(go())


def test_a_large_table_goes_on_with_what_was_found(workshop: Workshop) -> None:
    found = goes_on(workshop, "insert into {s}.orders (note) select repeat('x', 500) from generate_series(1, 3000)")
    assert len(found.large) == 1
    assert MOST_BYTES_TO_DELETE < 3000 * 500


def test_an_index_that_keeps_its_shape_goes_on_with_what_was_found(workshop: Workshop) -> None:
    found = goes_on(workshop, "insert into {s}.spots select point(n, n) from generate_series(1, 50) n")
    assert (len(found.dirty), found.large) == (1, [])


@pytest.mark.parametrize(
    "statement",
    [
        "update {s}.users set email = 'changed' where id = 1",
        "delete from {s}.orders; delete from {s}.users",
        "update {s}.users set email = email",
        "insert into {s}.orders (user_id) values (1); delete from {s}.users where id = 2",
    ],
)
def test_seeds_that_were_changed_go_on_with_what_was_found(workshop: Workshop, statement: str) -> None:
    assert len(goes_on(workshop, statement).touched) == 1


def goes_on(workshop: Workshop, statement: str) -> Found:
    """What was found, of which the set is then made as it was."""
    told: list[Found] = []

    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            first = await content(other, built)
            for _ in range(2):
                await work(other, built, statement)
                as_it_was, found = come_back(home, built)
                assert not as_it_was
                assert found is not None
                assert found.state == EMPTIED
                told.append(found)
                assert (await home.recycle(built, found=found)).why == ""
                assert {**await content(other, built), "users": None} == {**first, "users": None}
                assert come_back(home, built) == (True, None)

    asyncio.run(go())
    return told[-1]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("truncate {s}.orders", ""),
        ("insert into {s}.orders (user_id) values (1); truncate {s}.users restart identity cascade", ""),
        ("refresh materialized view {s}.counted", "came out otherwise"),
        ("alter table {s}.orders add column age int; alter table {s}.orders drop column age", "(dropped)"),
        ("alter table {s}.orders add column age int", "age"),
        ("create table {s}.more (n int)", "more"),
        ("drop table {s}.orders", "orders"),
    ],
)
def test_what_changed_the_catalogs_is_looked_at_anew(workshop: Workshop, statement: str, why: str) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            await work(other, built, statement)
            assert come_back(home, built) == (False, None)
            said = (await home.recycle(built)).why
            assert why in said
            assert bool(why) == bool(said)

    asyncio.run(go())


def test_who_is_still_at_work_is_told_by_who_looks_anew(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HOLDERS_WAIT", 0.0)

    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            first = await content(other, built)
            await work(other, built, "begin; insert into {s}.orders (user_id) values (1)")
            assert come_back(home, built) == (False, None)
            assert "has written something" in (await home.recycle(built)).why
            await other.execute("rollback; begin; select pg_current_xact_id()")
            await lend_again(home)
            assert come_back(home, built) == (False, None)
            recycled = await home.recycle(built)
            assert f"server process {other.get_server_pid()} " in recycled.why
            assert [each.pid for each in recycled.holders] == [other.get_server_pid()]
            await other.execute("rollback")
            await lend_again(home)
            assert come_back(home, built) == (True, None)
            assert await content(other, built) == first

    asyncio.run(go())


def test_what_still_sees_deleted_rows_is_waited_for_by_a_second_vacuum_and_then_by_others(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, other), connected(workshop.url) as reader:
            first = await content(other, built)
            await work(other, built, PLAIN["rows"])
            await reader.execute("begin isolation level repeatable read; select 1")
            as_it_was, found = come_back(home, built)
            assert not as_it_was
            assert found is not None
            assert len(found.dirty) == 1
            assert (await home.recycle(built, found=found)).why == ""  # truncated
            await reader.execute("rollback")
            assert await content(other, built) == first

    asyncio.run(go())


def test_what_still_sees_deleted_rows_and_ends_in_time_costs_a_second_vacuum(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, other), connected(workshop.url) as reader:
            await work(other, built, PLAIN["rows"])
            await reader.execute("begin isolation level repeatable read; select 1")
            said = begin(home, built)
            rounds = 0
            while not said:
                home.go_on()
                hear(home)
                rounds += 1
                if rounds == MOST_VACUUMS:  # the function, and the first VACUUM
                    await reader.execute("rollback")
            assert said == [(True, None)]
            assert rounds == MOST_VACUUMS + 1

    asyncio.run(go())


def test_several_sets_come_back_at_once_and_each_as_it_is(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            sets = [built]
            for _ in range(3):
                another = await home.build(built.plan, ())
                await home.settle_in(another)
                sets.append(another)
            for each in sets:
                assert (await home.recycle(each)).why == ""
            first = [await content(other, each) for each in sets]
            for each, what in zip(sets, ["nothing", "rows", "more rows"], strict=False):
                await work(other, each, PLAIN[what])
            await work(other, sets[3], "alter table {s}.orders add column age int")
            coming = [begin(home, each) for each in sets]
            go_on(home, *coming)
            assert coming == [[(True, None)], [(True, None)], [(True, None)], [(False, None)]]
            assert [await content(other, each) for each in sets[:3]] == first[:3]
            assert await home.drop(sets[1:]) == ([], [])

    asyncio.run(go())


Lend = Callable[[Admin], AbstractAsyncContextManager[asyncpg.Connection]]
LENDS = pytest.mark.parametrize(
    "lend", [Admin.administrator, Admin.resetter, Admin.tester], ids=lambda lend: lend.__name__
)


@LENDS
@pytest.mark.parametrize("steps", range(4))
def test_what_is_between_two_messages_goes_on_after_work_in_between(workshop: Workshop, lend: Lend, steps: int) -> None:
    """After so many messages that were sent, the last of which was not heard; the work may clean the session."""

    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            first = await content(other, built)
            await work(other, built, PLAIN["rows"])
            said = begin(home, built)
            for step in range(steps):
                if step:
                    hear(home)
                home.go_on()
            async with lend(home._site.admin):
                home.go_on()
            while not said:
                await home.finish()
            home.go_on()
            ((as_it_was, found),) = said
            assert as_it_was == (steps >= 2 or lend is not Admin.tester)
            assert (found is not None) == (steps == 1 and lend is Admin.tester)
            if not as_it_was:
                assert (await home.recycle(built, found=found)).why == ""
            assert await content(other, built) == first

    asyncio.run(go())


def test_what_was_begun_is_over_once_it_is_finished(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, _):
            for sent in (False, True):
                said = begin(home, built)
                if sent:
                    home.go_on()
                await home.finish()
                assert said == [(True, None)]

    asyncio.run(go())


def test_what_is_begun_while_another_is_reset_comes_back_afterwards(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, _):
            async with home._site.admin.resetter():
                said = begin(home, built)
                home.go_on()
                assert said == []
            go_on(home, said)
            assert said == [(True, None)]

    asyncio.run(go())


@pytest.mark.parametrize("lend", [Admin.administrator, Admin.tester], ids=lambda lend: lend.__name__)
def test_nothing_is_begun_where_nobody_is_about_to_lend_the_line(workshop: Workshop, lend: Lend) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, _):
            async with lend(home._site.admin):
                assert not home.begin(built, time.monotonic(), unexpected)
            assert not home.begin(built, time.monotonic(), unexpected)
            assert (await home.recycle(built)).why == ""
            assert come_back(home, built) == (True, None)

    asyncio.run(go())


def test_nothing_is_begun_whose_function_the_session_has_not(workshop: Workshop) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, _):
            another = await home.build(built.plan, ())
            await home.settle_in(another)
            assert not home.begin(built, time.monotonic(), unexpected)
            assert come_back(home, another) == (True, None)
            assert await home.drop([another]) == ([], [])
            assert not home.begin(another, time.monotonic(), unexpected)

    asyncio.run(go())


@pytest.mark.parametrize("messages", range(3))
def test_a_loss_is_told_once_and_nothing_is_begun_after_it(workshop: Workshop, messages: int) -> None:
    async def go() -> None:
        async with settled(workshop) as (home, built, other):
            admin = home._site.admin
            lost = asyncio.Event()
            admin.on_loss.append(lost.set)
            await work(other, built, PLAIN["rows"])
            said = begin(home, built)
            for message in range(messages):
                if message:
                    hear(home)
                home.go_on()
            async with workshop.superuser() as superuser:
                assert await superuser.fetchval("select pg_terminate_backend($1, 5000)", admin._pid)
            await asyncio.wait_for(lost.wait(), SECONDS)
            assert not home.begin(built, time.monotonic(), unexpected)
            home.go_on()
            await home.finish()
            home.go_on()
            assert [as_it_was for as_it_was, _ in said] == [False]
            assert not home.begin(built, time.monotonic(), unexpected)
            assert "was lost" in (await home.recycle(built)).why

    asyncio.run(go())


def unexpected(as_it_was: bool, found: Found | None) -> None:
    raise AssertionError((as_it_was, found))
