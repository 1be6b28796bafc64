"""Building with seeds, in sessions that migrations leave in disorder, and when it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm import BuildError, Database, SeedError, UnknownService
from pytest_pgdbm.connections.login import connect
from pytest_pgdbm.connections.loop import PrivateLoop
from pytest_pgdbm.ground.names import parse_schema, quote_literal

USERS = "create table {{tables.users}} (id serial primary key, email text unique);"
ORDERS = "create table {{tables.orders}} (id serial primary key, user_id int references {{tables.users.users}});"


async def seed_failure(workshop: Workshop, seed: Any) -> SeedError:
    asked = workshop.ask("users", {"users": workshop.service("users", USERS, seed=seed)})
    async with workshop.home() as home:
        with pytest.raises(SeedError) as caught:
            await home.build(asked.plan, ())
    assert await workshop.schemas() == []
    return caught.value


@pytest.mark.parametrize(
    ("sql", "line", "said"),
    [
        (
            "insert into {{tables.users}} (email) values ('a');\ninsert into {{tables.users}} (mail) values ('b');",
            2,
            'column "mail" of relation "users" does not exist',
        ),
        (
            "insert into {{tables.users}} (email)\nvalues ('a');\n\ninsert into {{tables.users}} (email) values ('a');",
            4,
            'duplicate key value violates unique constraint "users_email_key"',
        ),
        ("\nselect * from users;", 2, 'relation "users" does not exist'),
    ],
)
def test_a_seed_file_that_fails_is_told_with_its_line(workshop: Workshop, sql: str, line: int, said: str) -> None:
    path = workshop.folder / "seed.sql"
    path.write_text(sql)
    lines = str(asyncio.run(seed_failure(workshop, str(path)))).splitlines()
    assert lines[:2] == ["a seed of service 'users' failed", f"  {path}, line {line}"]
    assert lines[2] == f"  the server says: {said}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"users": [{"email": "a"}, {"mail": "b"}]}, "at row 2 of table 'users'\n  the server says: column \"mail\""),
        ({"users": [{"email": "a"}, {"email": "a"}]}, "at row 2 of table 'users'\n  the server says: duplicate key"),
        ({"Users": [{}]}, "at row 1 of table 'Users'\n  the server says: relation \"pgdbm_"),
        ({"users": [{"email": 3}]}, "at row 1 of table 'users'\n  DataError: invalid input for query argument $1: 3"),
        ({"users": [{}, {"email": "a\0b"}]}, "at row 2 of table 'users'\n  the server says: invalid byte sequence"),
    ],
)
def test_a_row_that_fails_is_told_with_table_and_number(workshop: Workshop, rows: Any, message: str) -> None:
    said = str(asyncio.run(seed_failure(workshop, rows)))
    assert said.startswith("a seed of service 'users' failed, " + message)


def test_a_function_that_fails_is_told_with_its_line(workshop: Workshop) -> None:
    async def load(database: Database) -> None:
        await database.execute("insert into {{tables.users}} (email) values ('a')")
        await database.execute("insert into {{tables.users}} (mail) values ('a')")

    line = load.__code__.co_firstlineno + 2
    said = str(asyncio.run(seed_failure(workshop, load)))
    name = "test_a_function_that_fails_is_told_with_its_line.<locals>.load"
    assert said.startswith(f"a seed of service 'users' failed in {name}()\n  {__file__}, line {line}\n  QueryError: ")
    assert 'column "mail" of relation "users" does not exist' in said


def test_a_function_that_asks_for_a_sibling_that_there_is_not_is_told_with_its_line(workshop: Workshop) -> None:
    async def load(database: Database) -> None:
        database.sibling("userss")

    error = asyncio.run(seed_failure(workshop, load))
    assert isinstance(error.__cause__, UnknownService)
    name = "test_a_function_that_asks_for_a_sibling_that_there_is_not_is_told_with_its_line.<locals>.load"
    assert str(error) == (
        f"a seed of service 'users' failed in {name}()\n"
        f"  {__file__}, line {load.__code__.co_firstlineno + 1}\n"
        "  UnknownService: unknown service 'userss'; did you mean 'users'?\n"
        "      known services: users\n"
        "      siblings of 'users' are the services of its set"
    )


def test_a_callable_object_that_fails_is_told_by_its_class(workshop: Workshop) -> None:
    class Loader:
        async def __call__(self, database: Database) -> None:
            raise ValueError("postgresql://me:hunter2@h/db")

    said = str(asyncio.run(seed_failure(workshop, Loader())))
    assert said.startswith("a seed of service 'users' failed in ")
    assert said.endswith("ValueError: postgresql://me:****@h/db")


def test_a_seed_function_works_with_siblings_and_several_connections(workshop: Workshop) -> None:
    async def load(database: Database) -> None:
        users = database.sibling("users")
        assert await users.fetch_value("select current_user") == await users.fetch_value("select session_user")
        async with database.transaction() as one, users.acquire() as other:
            first = await other.fetchval(users.prepare_query("select min(id) from {{tables.users}}"))
            await one.execute("insert into {{tables.orders}} (user_id) values ($1)", first)
        with pytest.raises(UnknownService) as caught:
            database.sibling("nobody")
        assert str(caught.value) == (
            "unknown service 'nobody'\n"
            "  known services: orders, users\n"
            "  nothing ties it to 'orders': needs='nobody' does, or ask for it by itself: pgdbm_db('nobody')"
        )
        with pytest.raises(UnknownService, match="unknown service 3"):
            database.sibling(3)  # type: ignore[arg-type]

    async def go() -> None:
        services = {
            "users": workshop.service("users", USERS, seed={"users": [{"email": "a"}]}),
            "orders": workshop.service("orders", ORDERS, seed=load),
        }
        async with workshop.built("orders", services, own=True) as (home, built), connected(workshop.url) as connection:
            assert await connection.fetchval(f"select count(*) from {built.schemas['orders']}.orders") == 1
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_a_seed_that_leaves_a_transaction_open_and_fails_leaves_no_schema(workshop: Workshop) -> None:
    kept: list[asyncpg.Connection] = []

    async def load(database: Database) -> None:
        other = await asyncpg.connect(database.dsn)
        kept.append(other)
        await other.execute("begin")
        await other.execute(database.prepare_query("insert into {{tables.users}} (email) values ('a')"))
        connection = await database.pool.acquire()
        await connection.execute("begin")
        await connection.execute(database.prepare_query("insert into {{tables.users}} (email) values ('b')"))
        raise RuntimeError("half-way")

    asyncio.run(seed_failure(workshop, load))
    assert kept


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, pytest.skip.Exception])
def test_a_seed_may_interrupt_the_run(workshop: Workshop, interruption: type[BaseException]) -> None:
    async def load(database: Database) -> None:
        raise interruption("enough")

    asked = workshop.ask("users", {"users": workshop.service("users", USERS, seed=load)})

    async def go() -> None:
        async with workshop.home() as home:
            await home.build(asked.plan, ())

    loop = PrivateLoop()
    try:
        with pytest.raises(interruption):
            loop.run(go())
        assert loop.run(workshop.schemas()) == []
    finally:
        loop.close()


async def interrupted(workshop: Workshop, how: Callable[[asyncio.Task[Any]], Awaitable[None]]) -> None:
    """Builds until it sleeps in a migration, interrupts, and closes the home at once, as the end of a run does."""
    sql = "create table {{tables.t}} (id int);\nselect pg_sleep(60);"
    asked = workshop.ask("users", {"users": workshop.service("users", {"001.sql": USERS, "002.sql": sql})})
    async with workshop.home() as home, connected(workshop.url) as connection:
        building = asyncio.ensure_future(home.build(asked.plan, ()))
        sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
        while not await connection.fetchval(sleeping):
            await asyncio.sleep(0.01)
        await how(building)
    assert await workshop.schemas() == []


def test_a_cancelled_build_leaves_nothing(workshop: Workshop) -> None:
    async def cancel(building: asyncio.Task[Any]) -> None:
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building

    asyncio.run(interrupted(workshop, cancel))


def test_nor_one_that_is_cancelled_twice_or_not_waited_for(workshop: Workshop) -> None:
    async def cancel(building: asyncio.Task[Any]) -> None:
        building.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
            building.cancel()

    asyncio.run(interrupted(workshop, cancel))


def test_a_cancelled_build_is_followed_by_one_that_works(workshop: Workshop) -> None:
    async def go() -> None:
        slow = workshop.ask("slow", {"slow": workshop.service("slow", "begin; select pg_sleep(60);")})
        quick = workshop.ask("users", {"users": workshop.service("users", USERS)})
        async with workshop.home(own=True) as home:
            for seconds in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(home.build(slow.plan, ()), seconds)
                assert await home.drop([await home.build(quick.plan, ())]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


LEAVES = """
set search_path = public; set work_mem = '1MB'; set role none; set statement_timeout = '1s';
create temp table scratch (id int); create temp sequence counter; select nextval('pg_temp.counter');
select pg_advisory_lock(4711), pg_advisory_lock_shared(1, 2);
listen gossip;
declare open cursor with hold for select 1;
set role {role};
create table {{{{tables.t}}}} (id int);
"""


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_what_a_migration_leaves_in_its_session_is_gone_for_the_next_service(workshop: Workshop, own: bool) -> None:
    state = """
        do $$ begin
            assert current_setting('search_path') <> 'public', 'path';
            assert current_setting('work_mem') <> '1MB', 'work_mem';
            assert current_setting('statement_timeout') = '0', 'timeout';
            assert current_user = session_user, 'role';
            {}
        end $$;
    """
    gone = """
            assert not exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
                and objid in (4711, 2)), 'locks';
            assert not exists (select from pg_listening_channels()), 'channels';
            assert not exists (select from pg_cursors where name = 'open'), 'cursors';
            assert not exists (select from pg_class where relname = 'scratch'), 'temporary tables';
    """

    async def go() -> None:
        role = f"owner_of_{workshop.database}"
        async with workshop.superuser() as superuser:
            await superuser.execute(f"create role {role}; grant {role} to {workshop.own.login.user}")
            await superuser.execute(f"grant create on database {workshop.database} to {role}")
        try:
            leaves = LEAVES.format(role=role).replace(
                "create table", f"reset role; grant usage, create on schema {{{{schema}}}} to {role}; create table"
            )
            services = {
                "users": workshop.service("users", leaves),
                "orders": workshop.service(
                    "orders", {"001.sql": "select '{{tables.users.t}}';", "002.sql": state.format("")}
                ),
            }
            checks = {"checks": workshop.service("checks", state.format(gone))}
            async with workshop.home(own=own) as home:
                built = await home.build(workshop.ask("orders", services).plan, ())
                after = await home.build(workshop.ask("checks", checks).plan, ())
                again = await home.build(workshop.ask("orders", services).plan, ())
                assert await home.drop([built, after, again]) == ([], [])
        finally:
            async with workshop.superuser() as superuser:
                await superuser.execute(f"drop owned by {role}; drop role {role}")

    asyncio.run(go())


@pytest.mark.parametrize(
    "name",
    ["order-items", "Users", "1st", "two words", "o'hare", 'a"b', "ü€", "%s\n", "pg_catalog", "x" * 200, "\\", "$$"],
)
def test_a_service_of_any_name_gets_a_schema_of_a_plain_one(workshop: Workshop, name: str) -> None:
    async def go() -> None:
        sql = {"001.sql": "create table {{tables.t}} (id int);", "002.sql": "-- pgdbm:no-transaction\nselect 1;"}
        async with workshop.built(name, {name: workshop.service("s", sql)}) as (home, built):
            (schema,) = await workshop.schemas()
            assert built.schemas == {name: schema}
            assert parse_schema(schema) is not None
            async with connected(workshop.url) as connection:
                said = await connection.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", schema)
                assert said.endswith(f"service {name!r}")
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_two_who_build_the_same_service_do_not_wait_for_each_other(workshop: Workshop) -> None:
    """Both are in the middle of it at the same time, in which pgdbm would have the second one wait."""

    async def go() -> None:
        there = "(select count(*) from pg_locks where locktype = 'advisory' and classid = 1 and objid = 1)"
        meet = f"""
            do $$ begin
                perform pg_advisory_lock_shared(1, 1);
                for i in 1..500 loop
                    exit when {there} >= 2;
                    perform pg_sleep(0.01);
                end loop;
                assert {there} >= 2, 'the other one waits';
                perform pg_sleep(0.05);
            end $$;
        """
        asked = workshop.ask("users", {"users": workshop.service("users", meet, module="users")})
        async with workshop.home() as one, workshop.home(worker="gw1") as two:
            built = await asyncio.gather(one.build(asked.plan, ()), two.build(asked.plan, ()))
            assert len({each.schemas["users"] for each in built}) == 2
            assert await one.drop(built) == ([], [])

    asyncio.run(go())


def test_members_find_each_other_whatever_they_are_called(workshop: Workshop) -> None:
    async def go() -> None:
        services = {
            "Order-Items": workshop.service(
                "items", "create table {{tables.items}} (id int references {{tables.users.users}});"
            ),
            "users": workshop.service("users", USERS),
            "b": workshop.service("b", "create view {{tables.v}} as select id from {{tables.order_items.items}};"),
        }
        async with workshop.built("b", services) as (home, built):
            assert list(built.schemas) == ["users", "Order-Items", "b"]
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_a_comment_of_the_migrations_own_does_not_hinder_the_drop(workshop: Workshop) -> None:
    async def go() -> None:
        sql = "comment on schema {{schema}} is 'all that users are';"
        async with workshop.built("users", {"users": workshop.service("users", sql)}) as (home, built):
            assert await home.drop([built]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_an_undo_that_cannot_drop_says_so_in_the_error(workshop: Workshop) -> None:
    async def load(database: Database) -> None:
        async with workshop.superuser() as superuser:
            await superuser.execute(f"create view public.theirs as select * from {database.schema}.users")
        raise RuntimeError("no more")

    async def go() -> str:
        asked = workshop.ask("users", {"users": workshop.service("users", USERS, seed=load)})
        async with workshop.home() as home:
            with pytest.raises(BuildError) as caught:
                await home.build(asked.plan, ())
        return str(caught.value)

    last = asyncio.run(go()).splitlines()[-1]
    (schema,) = asyncio.run(workshop.schemas())
    assert last == f"  schema {schema} stays: what the plugin did not make depends on it: view public.theirs"


def test_connections_of_the_plugin_have_no_limits_of_the_database(workshop: Workshop) -> None:
    async def go() -> None:
        limits = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
        limits += ["transaction_timeout"] if workshop.own.version.partition(".")[0] >= "17" else []
        async with connected(workshop.url) as connection:
            for limit in limits:
                await connection.execute(f"alter database {workshop.database} set {limit} = '1s'")
        mine = await connect(workshop.own, workshop.database, workshop.own.login, application_name="it")
        try:
            assert [await mine.fetchval(f"show {limit}") for limit in limits] == ["0"] * len(limits)
            await mine.execute("reset all")
            assert [await mine.fetchval(f"show {limit}") for limit in limits] == ["0"] * len(limits)
            assert await mine.fetchval(f"select {quote_literal('x')}") == "x"
        finally:
            await mine.close()

    asyncio.run(go())
