"""Migrations that reach outside: told in words, undone where that is possible, and nobody else's doing is blamed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm import BuildError, Service

FOREIGN = """
create schema theirs;
create table theirs.t (id int primary key, n int);
insert into theirs.t values (1, 1);
create view theirs.v as select * from theirs.t;
create sequence theirs.numbers;
create type theirs.mood as enum ('good');
create function theirs.f(int) returns int language sql immutable as 'select $1';
create function theirs.writes() returns void language sql as 'insert into theirs.t values (2, 2)';
create table public.keep (id int);
create schema orders;
"""

HEAD = "a migration reached outside its schema"
REMEDY = (
    "  to mend it: write {{tables.x}} for the service's own tables and {{tables.<service>.x}} for another service's;"
    " what must lie elsewhere needs a database of its own (pgdbm_isolation = database)"
)


async def failure(
    workshop: Workshop, services: Mapping[str, Service], name: str = "users", **options: str
) -> list[str]:
    """The lines of the error, without the paths."""
    async with workshop.home(**options) as home:
        asked = workshop.ask(name, services)
        with pytest.raises(BuildError) as caught:
            await home.build(asked.plan, asked.others)
    lines = str(caught.value).splitlines()
    assert (lines[0], lines[-1]) == (HEAD, REMEDY)
    assert await workshop.schemas() == []
    return [line.strip().rpartition("/")[2] for line in lines[1:-1]]


async def outside(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """What there is outside of the plugin's schemas, by the numbers of its rows."""
    return await connection.fetch(
        "select 'c', oid, relname, xmin::text, relacl::text from pg_class"
        " where relnamespace::regnamespace::text in ('public', 'theirs')"
        " union all select 'p', oid, proname, xmin::text, '' from pg_proc"
        " where pronamespace::regnamespace::text in ('public', 'theirs')"
        " union all select 't', oid, typname, xmin::text, '' from pg_type"
        " where typnamespace::regnamespace::text in ('public', 'theirs')"
        " union all select 'n', oid, nspname, xmin::text, nspacl::text from pg_namespace where nspname !~ '^pg_'"
        " union all select 'd', 0::oid, t::text, xmin::text, '' from theirs.t t order by 1, 2, 3"
    )


@pytest.mark.parametrize(
    ("sql", "lines"),
    [
        ("create table made (id serial)", ["makes sequence public.made_id_seq", "makes table public.made"]),
        ("create type made as enum ('a')", ["makes type public.made"]),
        ("create function made() returns int language sql as 'select 1'", ["makes function public.made()"]),
        ("create domain made as int", ["makes type public.made"]),
        ("create view made as select 1 as one", ["makes view public.made"]),
        ("do $$ begin create domain made as int; exception when others then null; end $$", ["makes type public.made"]),
        ("create schema made", ["makes schema made"]),
        ("create publication made for table {{tables.t}}", ["makes publication made"]),
        (
            "create table {{tables.u}} (id int references t)",
            ["table constraint u_id_fkey on users.u refers to table theirs.t"],
        ),
        ("create view {{tables.w}} as select n from t", ["view users.w refers to table theirs.t"]),
        ("create view {{tables.w}} as select n from v", ["view users.w refers to view theirs.v"]),
        ("create table {{tables.u}} (m mood)", ["table column users.u.m refers to type theirs.mood"]),
        (
            "create table {{tables.u}} (n int default f(1))",
            ["default value for users.u.n refers to function theirs.f(integer)"],
        ),
        (
            "create table {{tables.u}} (n int default nextval('numbers'))",
            ["default value for users.u.n refers to sequence theirs.numbers"],
        ),
        ("insert into {{tables.t}} select id from t", ["uses table theirs.t"]),
        ("insert into t values (3)", ["changes table theirs.t"]),
        ("delete from v", ["changes view theirs.v", "changes table theirs.t"]),
        ("truncate t", ["changes table theirs.t"]),
        ("select nextval('numbers')", ["changes sequence theirs.numbers"]),
        ("select writes()", ["changes table theirs.t"]),
        ("do $$ begin execute 'alter table ' || 't' || ' add x int'; end $$", ["changes table theirs.t"]),
        ("create index made on t (n)", ["changes table theirs.t"]),
        ("comment on table t is 'x'", ["changes table theirs.t"]),
        ("comment on function f(int) is 'x'", ["changes function theirs.f(integer)"]),
        ("grant select on t to public", ["changes table theirs.t"]),
        ("alter type mood add value 'bad'", ["changes type theirs.mood"]),
        ("drop table if exists t cascade", ["drops theirs.t", "drops theirs.v"]),
        ("drop function f(int)", ["drops theirs.f"]),
        ("drop schema theirs cascade", ["drops theirs"]),
        ("alter role current_user set work_mem = '1MB'", ["changes the settings of a role or the database"]),
    ],
)
def test_what_a_migration_does_outside_is_named_and_undone(workshop: Workshop, sql: str, lines: list[str]) -> None:
    """The migration's path lets it find foreign names, as an unpinned pool does; `public` comes first."""

    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute(FOREIGN)
            before = await outside(connection)
            files = {
                "001_a.sql": "create table {{tables.t}} (id int);",
                "002_b.sql": "set search_path = public, theirs;\n" + sql,
            }
            services = {"users": workshop.service("users", files)}
            found = await failure(workshop, services)
            assert set(lines) <= {line.removeprefix("002_b.sql: ") for line in found}
            assert await outside(connection) == before

    asyncio.run(go())


@pytest.mark.parametrize(
    "sql",
    [
        "create function {{schema}}.g() returns int language sql as $$ select id from theirs.t $$",
        "create function {{schema}}.g() returns int language plpgsql as 'begin return (select id from theirs.t); end'",
        "do $$ begin perform theirs.f(1); end $$",
        "create view {{tables.w}} as select * from public.keep",
        "create table orders.x (id int)",
        "create function {{schema}}.g() returns int language sql as $$ select 1 from users.t $$",
        "create function {{schema}}.g() returns int language plpgsql as $$ begin perform 1 from shop_items.t; end $$",
    ],
)
def test_a_schema_that_sql_names_itself_is_told_before_anything_is_built(workshop: Workshop, sql: str) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute(FOREIGN)
        services = {
            "users": workshop.service(
                "users", {"001_a.sql": "create table {{tables.t}} (id int);", "002_b.sql": "\n" + sql}
            ),
            "shop-items": workshop.service("shop-items", "select 1"),
        }
        (line,) = await failure(workshop, services)
        assert line.startswith("002_b.sql, line 2: names ")
        assert line.endswith(" itself")

    asyncio.run(go())


@pytest.mark.parametrize("end", ["commit", "end"])
def test_what_is_committed_by_itself_is_named_and_told_to_stay(workshop: Workshop, end: str) -> None:
    async def go() -> None:
        files = {"001.sql": f"begin; set search_path = public; create table made (id int); {end};"}
        (line,) = await failure(workshop, {"users": workshop.service("users", files)})
        assert line == "001.sql: makes table public.made, which stays there"

    asyncio.run(go())


def test_so_is_what_is_made_without_a_transaction(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute("create table public.keep (id int)")
        files = {
            "001.sql": "-- pgdbm:no-transaction\nset search_path = public;\ncreate view made as select * from keep;"
        }
        (line,) = await failure(workshop, {"users": workshop.service("users", files)})
        assert line == "001.sql: makes view public.made, which stays there"

    asyncio.run(go())


def test_what_others_do_meanwhile_is_not_blamed(workshop: Workshop) -> None:
    """Somebody commits, and holds open, the very names of which the migration speaks while it runs."""

    async def go() -> None:
        sql = "create table {{tables.made}} (id int); select pg_sleep(0.3); create table {{tables.theirs}} (id int);"
        async with workshop.home() as home, connected(workshop.url) as one, connected(workshop.url) as two:
            asked = workshop.ask("users", {"users": workshop.service("users", sql)})
            building = asyncio.ensure_future(home.build(asked.plan, ()))
            while not await one.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
            ):
                await asyncio.sleep(0.01)
            await one.execute("create table public.made (id int)")
            await one.execute("create function public.theirs() returns int language sql as 'select 1'")
            await one.execute("begin; create type public.users as (a int)")
            await two.execute("begin; create schema made; insert into public.made values (1)")
            await home.drop([await building])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_what_belongs_to_an_extension_or_to_the_set_is_no_reach(workshop: Workshop) -> None:
    async def go() -> None:
        users = """
            create extension if not exists citext;
            create extension hstore;
            create table {{tables.users}} (id int primary key, name public.citext, more public.hstore);
            create type {{schema}}.mood as enum ('good');
            create function {{schema}}.mood(text) returns {{schema}}.mood language sql as 'select $1::{{schema}}.mood';
            create cast (text as {{schema}}.mood) with inout as implicit;
            create view {{tables.named}} as select users.name from {{tables.users}} users where more is null;
            create table {{tables.old}} (id int);
            alter default privileges in schema {{schema}} grant select on tables to public;
            comment on schema {{schema}} is 'ours';
            grant usage on schema {{schema}} to public;
            create temp table scratch as select * from pg_catalog.pg_class c, information_schema.tables limit 0;
            do $$ begin create table {{schema}}.sub (id int); exception when others then null; end $$;
        """
        orders = "create table {{tables.o}} (id int references {{tables.users.users}}, m {{tables.users.mood}});"
        services = {
            "users": workshop.service("users", {"001.sql": users, "002.sql": "drop table {{tables.old}};"}),
            "orders": workshop.service("orders", orders),
        }
        async with workshop.built("orders", services) as (home, built):
            assert await home.drop([built]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_it_is_looked_at_once_for_each_set_and_again_when_that_failed(workshop: Workshop) -> None:
    async def go() -> None:
        asked = workshop.ask(
            "users", {"users": workshop.service("users", "set search_path = public; create table made (id int);")}
        )
        async with workshop.home() as home:
            for _ in range(2):
                with pytest.raises(BuildError, match=r"makes table public\.made"):
                    await home.build(asked.plan, ())

    asyncio.run(go())
