"""Databases for sets: made with a mark, dropped only with it; who was in one is ended and named."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from databases import connected
from workshop import Workshop, interrupt_drop

from pytest_pgdbm import BuildError
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas import visitors
from pytest_pgdbm.schemas.databases import Databases
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.proof import Proof, database_mark

LOCALE = """
select datcollate, datctype, to_jsonb(d) ->> 'datlocprovider', coalesce(to_jsonb(d) ->> 'datlocale', ''),
    pg_get_userbyid(datdba), datconnlimit as mark, shobj_description(oid, 'pg_database') as comment
from pg_database d where datname = $1
"""


@asynccontextmanager
async def databases(workshop: Workshop, *, own: bool = False) -> AsyncIterator[Databases]:
    endpoint = workshop.own if own else await workshop.by_url(workshop.url)
    admin = Admin(endpoint, endpoint.database, application_name="it", path=None)
    made = Databases(admin, endpoint, Proof(workshop.run.id))
    try:
        yield made
    finally:
        await admin.close()


def name(workshop: Workshop, number: int = 1) -> str:
    return names.database_name(run=workshop.run.id, worker="main", number=number)


async def there(workshop: Workshop, database: str) -> bool:
    async with connected(workshop.url) as connection:
        return bool(await connection.fetchval("select count(*) from pg_database where datname = $1", database))


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_a_database_is_made_for_the_role_of_tests_with_the_mark_on_it_and_dropped(
    workshop: Workshop, own: bool
) -> None:
    async def go() -> None:
        async with databases(workshop, own=own) as made:
            await made.create(name(workshop), ["users", "it's"])
            async with connected(workshop.url) as connection:
                row = await connection.fetchrow(LOCALE, name(workshop))
                here = await connection.fetchrow(LOCALE, workshop.database)
            assert tuple(row)[:-2] == tuple(here)[:-2]
            assert re.fullmatch(
                rf"pytest-pgdbm database of run {workshop.run.id}, process \d+ on \S+, mark {row['mark']},"
                """ services 'users', "it's\"""",
                row["comment"],
            )
            assert await made.drop(name(workshop)) == []
            assert await made.drop(name(workshop)) == []
        assert not await there(workshop, name(workshop))

    asyncio.run(go())


COMMENT = "pytest-pgdbm database of run {run}, process 1 on host, services 'users'"


@pytest.mark.parametrize(
    ("run", "comment"),
    [
        (None, None),
        (None, ""),
        (None, "ours"),
        (None, COMMENT.format(run="0123456789")),
        ("0123456789", COMMENT),
        (None, COMMENT.replace("database of", "schema of")),
    ],
)
def test_without_proof_a_database_stays(workshop: Workshop, run: str | None, comment: str | None) -> None:
    database = names.database_name(run=run or workshop.run.id, worker="main", number=1)

    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute(f"create database {quote_ident(database)}")
            if comment is not None:
                said = quote_literal(comment.replace("{run}", workshop.run.id))
                await connection.execute(f"comment on database {quote_ident(database)} is {said}")
            try:
                async with databases(workshop) as made:
                    assert await made.drop(database) == [Kept(database, "no proof that this run made it", "database")]
                assert await there(workshop, database)
            finally:
                await connection.execute(f"drop database {quote_ident(database)}")

    asyncio.run(go())


@pytest.mark.parametrize("name", ["postgres", "template1", "shop", "pgdbm_0123456789_main"])
def test_no_other_name_is_ever_dropped(name: str) -> None:
    said = COMMENT.format(run="0123456789")
    proof, ours, mark = Proof("0123456789"), "pgdbm_0123456789_main_1", database_mark(16384)
    assert not proof.holds_for_database(name, said, mark, 16384)
    assert proof.holds_for_database(ours, said, mark, 16384)
    assert proof.holds_for_database(ours, None, mark, 16384)
    assert not proof.holds_for_database(ours, "mine", mark, 16384)
    assert not proof.holds_for_database(ours, said, -1, 16384)
    assert not proof.holds_for_database(ours, said, mark, 16385)


def test_an_interrupted_drop_takes_the_mark_and_leaves_the_comment_that_has_it_too() -> None:
    proof, ours, half = Proof("0123456789"), "pgdbm_0123456789_main_1", -2
    said = proof.database_comment(["users", "it's"], 16384)
    assert proof.holds_for_database(ours, said, half, 16384)
    assert not proof.holds_for_database(ours, said, half, 16385)
    assert not proof.holds_for_database("pgdbm_0123456789_main", said, half, 16384)
    assert not proof.holds_for_database(ours, Proof("123456789a").database_comment(["users"], 16384), half, 16384)
    for comment in (None, "", "mine", COMMENT.format(run="0123456789"), proof.comment("users")):
        assert not proof.holds_for_database(ours, comment, half, 16384)


def test_somebody_else_in_it_is_no_hindrance(workshop: Workshop) -> None:
    async def go() -> None:
        async with databases(workshop) as made:
            await made.create(name(workshop), ["users"])
            other = await asyncpg.connect(workshop.url.rpartition("/")[0] + "/" + name(workshop))
            await other.execute("begin; create table t (id int)")
            assert await made.drop(name(workshop)) == []
            other.terminate()

    asyncio.run(go())


def test_one_that_is_interrupted_while_it_is_made_can_be_dropped_all_the_same(workshop: Workshop) -> None:
    async def go() -> None:
        async with databases(workshop) as made:
            for number, seconds in enumerate((0.0, 0.001, 0.01, 0.02, 0.03, 0.05)):
                with pytest.raises(asyncio.TimeoutError):
                    # A thousand times, since how long it takes is not known.
                    await asyncio.wait_for(create_many(made, workshop, 1000 * number), seconds)
                for each in range(1000 * number, 1000 * number + 3):
                    assert await made.drop(name(workshop, each)) == []
        async with connected(workshop.url) as connection:
            left = await connection.fetch(
                "select datname from pg_database where datname like $1", f"%{workshop.run.id}%"
            )
            assert left == []

    async def create_many(made: Databases, workshop: Workshop, first: int) -> None:
        for number in range(first, first + 3):
            await made.create(name(workshop, number), ["users"])
        await asyncio.sleep(60)

    asyncio.run(go())


def test_one_whose_drop_was_interrupted_is_dropped_all_the_same(workshop: Workshop) -> None:
    async def go() -> None:
        async with databases(workshop) as made:
            await made.create(name(workshop), ["users"])
            await interrupt_drop(workshop, name(workshop))
            assert await made.drop(name(workshop)) == []
        assert not await there(workshop, name(workshop))

    asyncio.run(go())


def test_one_that_cannot_be_made_is_told(workshop: Workshop) -> None:
    async def go() -> str:
        async with databases(workshop) as made:
            await made.create(name(workshop), ["users"])
            with pytest.raises(BuildError) as caught:
                await made.create(name(workshop), ["users"])
            assert await made.drop(name(workshop)) == []
        return str(caught.value)

    assert asyncio.run(go()) == (
        "a database of its own could not be made for a test (isolation 'database')\n"
        f'  the server says: database "{name(workshop)}" already exists'
    )


def test_who_is_left_is_ended_and_named_and_of_the_pools_own_the_last_two_stay(workshop: Workshop) -> None:
    async def go() -> None:
        async def connect(application: str) -> asyncpg.Connection:
            return await asyncpg.connect(workshop.url, server_settings={"application_name": application})

        async with connected(workshop.url) as admin:
            await admin.execute("set application_name = 'pgdbm 0123456789 main admin'")
            ours = [await connect("pool") for _ in range(4)]
            beside = await connect("pgdbm 0123456789 main pool end")
            for each in (*ours[::-1], beside):
                await each.fetchval("select 1")
            assert await visitors.end(admin, "0123456789", "pool", idle=2) == []
            assert [await alive(each) for each in ours] == [True, True, False, False]
            busy, idle = await connect("busy"), await connect("")
            await busy.execute("begin")
            await idle.fetchval("select 4711")
            found = await visitors.end(admin, "0123456789", "pool", idle=2)
            assert {(each.pid, each.application, each.state, each.query) for each in found} == {
                (busy.get_server_pid(), "busy", "idle in transaction", "begin"),
                (idle.get_server_pid(), "", "idle", "select 4711"),
            }
            assert [await alive(each) for each in (*ours[:2], beside, busy, idle)] == [True, True, True, False, False]
            for each in (*ours, beside, busy, idle):
                each.terminate()

    async def alive(connection: asyncpg.Connection) -> bool:
        try:
            return await connection.fetchval("select true")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return False

    asyncio.run(go())


def test_one_that_is_just_being_closed_is_nobodys_leak(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as admin:
            other = await asyncpg.connect(workshop.url)
            asyncio.get_running_loop().call_later(0.03, other.terminate)
            assert await visitors.end(admin, "0123456789", "pool", idle=2) == []

    asyncio.run(go())
