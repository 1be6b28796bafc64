"""Sets that cannot go at once: who holds on to them is found, and either cut off or named."""

from __future__ import annotations

import asyncio
import time

import asyncpg
from databases import connected, waits_or_is_done
from workshop import Workshop

USERS = "create table {{tables.users}} (id serial primary key, email text unique);"
ORDERS = "create table {{tables.orders}} (id serial primary key, user_id int references {{tables.users.users}});"


def test_a_connection_that_holds_locks_on_the_set_alone_is_cut_off(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            holder = await asyncpg.connect(workshop.url, server_settings={"application_name": "left behind"})
            await holder.execute(f"begin; insert into {built.schemas['users']}.users (email) values ('a')")
            kept, ended = await home.drop([built])
            assert kept == []
            assert [(each.pid, each.application, each.state) for each in ended] == [
                (holder.get_server_pid(), "left behind", "idle in transaction")
            ]
            assert "insert into" in ended[0].query
            holder.terminate()
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_so_is_one_that_has_made_a_table_there_and_not_committed_it(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            holder = await asyncpg.connect(workshop.url)
            await holder.execute(f"begin; create table {built.schemas['users']}.more (id int)")
            kept, ended = await home.drop([built])
            assert (kept, [each.pid for each in ended]) == ([], [holder.get_server_pid()])
            holder.terminate()
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_somebody_who_holds_locks_elsewhere_too_is_left_alone_and_named(workshop: Workshop) -> None:
    async def go() -> None:
        services = {"users": workshop.service("users", USERS), "notes": workshop.service("notes", "select 1")}
        async with workshop.built("users", services) as (home, users), connected(workshop.url) as backup:
            notes = await home.build(workshop.ask("notes", services).plan, ())
            schema = users.schemas["users"]
            await backup.execute("create table public.theirs (id int)")
            await backup.execute("set application_name = 'backup'")
            await backup.execute(f"begin; lock table {schema}.users, public.theirs in access share mode")
            begun = time.monotonic()
            kept, ended = await home.drop([users, notes])
            assert time.monotonic() - begun < 7
            assert ended == []
            assert [each.name for each in kept] == [schema]
            role = await backup.fetchval("select current_user")
            who = f"locked by server process {backup.get_server_pid()} ('backup' of role '{role}', idle in transaction)"
            assert kept[0].why == who
            assert await workshop.schemas() == [schema]
            said = await backup.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", schema)
            assert said.endswith(f"; kept: {who}")
            await backup.execute("rollback")
            assert await home.drop([users]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_a_set_that_somebody_uses_stays_with_all_that_it_needs(workshop: Workshop) -> None:
    async def go() -> None:
        services = {name: workshop.service(name, sql) for name, sql in {"users": USERS, "orders": ORDERS}.items()}
        services["notes"] = workshop.service("notes", "select 1")
        async with workshop.built("orders", services) as (home, built), connected(workshop.url) as connection:
            notes = await home.build(workshop.ask("notes", services).plan, ())
            view = f"create view public.theirs as select * from {built.schemas['orders']}.orders"
            await connection.execute(view)
            kept, _ = await home.drop([built, notes])
            assert {each.name: each.why for each in kept} == {
                built.schemas["orders"]: "what the plugin did not make depends on it: view public.theirs",
                built.schemas["users"]: "what the plugin did not make depends on it: table constraint"
                f" orders_user_id_fkey on {built.schemas['orders']}.orders",
            }
            assert sorted(await workshop.schemas()) == sorted(built.schemas.values())

    asyncio.run(go())


def test_a_set_that_somebody_begins_to_use_while_it_is_dropped_stays(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            schema = built.schemas["users"]
            async with connected(workshop.url) as other:
                await other.execute(
                    f"begin; create table public.theirs (own text) inherits ({schema}.users);"
                    "insert into public.theirs (own) values ('precious')"
                )
                dropping = asyncio.ensure_future(home.drop([built]))
                assert not await waits_or_is_done(dropping, other)
                await other.execute("commit")
                kept, ended = await dropping
                assert ([each.name for each in kept], ended) == ([schema], [])
                assert "table public.theirs" in kept[0].why
                assert await other.fetchval("select own from public.theirs") == "precious"

    asyncio.run(go())


def test_sets_of_one_test_go_together_though_they_refer_to_each_other(workshop: Workshop) -> None:
    async def go() -> None:
        services = {"users": workshop.service("users", USERS), "notes": workshop.service("notes", "select 1")}
        async with workshop.built("users", services) as (home, users), connected(workshop.url) as connection:
            notes = await home.build(workshop.ask("notes", services).plan, ())
            await connection.execute(
                f"create table {notes.schemas['notes']}.n (id int references {users.schemas['users']}.users);"
                f"create view {users.schemas['users']}.v as select * from {notes.schemas['notes']}.n"
            )
            assert await home.drop([users, notes]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_what_was_made_before_the_connection_was_lost_is_for_others_to_sweep(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            async with workshop.superuser() as superuser:
                await superuser.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where application_name like 'pgdbm % admin'and datname = current_database()"
                )
            assert await home.drop([built]) == ([], [])
            later = await home.build(built.plan, ())
            assert await workshop.schemas() == [*built.schemas.values(), *later.schemas.values()]
            assert await home.drop([built, later]) == ([], [])
        assert await workshop.schemas() == list(built.schemas.values())

    asyncio.run(go())


def test_a_connection_that_is_lost_in_the_middle_is_told(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            schema = built.schemas["users"]
            async with connected(workshop.url) as holder, workshop.superuser() as superuser:
                await holder.execute(f"begin; lock table {schema}.users")
                dropping = asyncio.ensure_future(home.drop([built]))
                ended = (
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where wait_event_type = 'Lock' and datname = $1"
                )
                while not await superuser.fetch(ended, workshop.database):
                    await asyncio.sleep(0)
                kept, _ = await dropping
        assert [each.name for each in kept] == [schema]
        assert kept[0].why.startswith("the connection to the server was lost (")
        assert await workshop.schemas() == [schema]

    asyncio.run(go())


def test_a_role_that_may_not_drop_is_told(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.built("users", {"users": workshop.service("users", USERS)}) as (home, built):
            schema = built.schemas["users"]
            async with workshop.superuser() as superuser:
                await superuser.execute(f"alter schema {schema} owner to postgres")
                kept, _ = await home.drop([built])
                assert [each.why for each in kept] == [
                    f"the server refused to drop it: must be owner of schema {schema}"
                ]

    asyncio.run(go())
