"""How schemas are built: by pgdbm, whatever the service is called and however it migrates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from conftest import Project
from databases import connected
from pgdbm import AsyncMigrationManager
from workshop import Workshop

from pytest_pgdbm.ground.names import quote_literal

Query = Callable[..., list[Any]]


@pytest.mark.parametrize(
    "name", ["order-items", "Users", "1st", "two words", "o'hare", 'a"b', "ü", "%s", "schema_migrations", "x" * 200]
)
def test_a_service_may_have_any_name(project: Project, name: str) -> None:
    project.write("sql/001.sql", "create table {{tables.t}} (id int);\ninsert into {{tables.t}} values (1);")
    project.run(
        test=f"""
        from pytest_pgdbm import pgdbm_db

        odd_db = pgdbm_db({name!r}, migrations="sql")

        async def test_it(odd_db):
            assert odd_db.service == {name!r}
            assert await odd_db.fetch_value("select id from {{{{tables.t}}}}") == 1
        """
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("declared", "started"),
    [
        ("", "module_name='users'"),
        ("", ""),
        ("module='accounts'", "module_name='accounts'"),
        ("migrations_table='applied'", "module_name='users', migrations_table='applied'"),
    ],
    ids=["its name", "pgdbm's default name", "a declared name", "another tracking table"],
)
def test_a_service_that_migrates_itself_at_start_up_finds_everything_applied(
    project: Project, declared: str, started: str
) -> None:
    project.write("migrations/users/002_index.sql", "create index on {{tables.users}} (email);")
    project.write("conftest.py", f"from pytest_pgdbm import pgdbm_db\nusers_db = pgdbm_db('users', {declared})\n")
    project.run(
        test=f"""
        from pgdbm import AsyncMigrationManager

        async def test_it(users_db):
            runner = AsyncMigrationManager(users_db, "migrations/users", {started})
            assert (await runner.apply_pending_migrations())["status"] == "up_to_date"
        """
    ).assert_outcomes(passed=1)


def test_migrations_without_transaction_work(project: Project) -> None:
    project.write(
        "migrations/users/002_index.sql",
        "-- pgdbm:no-transaction\ncreate index concurrently if not exists by_email on {{tables.users}} (email);",
    )
    project.run(
        test="""
        async def test_it(users_db):
            assert await users_db.fetch_value(
                "select count(*) from pg_indexes where schemaname = $1 and indexname = 'by_email'", users_db.schema
            ) == 1
        """
    ).assert_outcomes(passed=1)


def test_nobody_waits_for_pgdbms_lock(project: Project, database_url: str) -> None:
    """Held by somebody else under the service's own module name, as a second worker would."""

    async def run() -> pytest.RunResult:
        connection = await asyncpg.connect(database_url)
        for module in ("users", "orders", "schema_migrations"):
            key = f"hashtext({quote_literal('pgdbm_migration_' + module)})"
            await connection.execute(f"select pg_advisory_lock({key})")
        try:
            return await asyncio.to_thread(project.run_apart, test="async def test_it(users_db): pass")
        finally:
            await connection.close()

    asyncio.run(run()).assert_outcomes(passed=1)


def test_what_a_migration_leaves_in_its_session_does_not_reach_the_next(project: Project) -> None:
    project.write(
        "migrations/leaves/001.sql",
        """
        set search_path to public;
        set work_mem to '1MB';
        create temp table scratch (id int);
        select pg_advisory_lock(4711);
        select pg_advisory_lock(4711);
        select pg_advisory_lock_shared(-1, 4711);
        listen gossip;
        create table {{tables.t}} (id int);
        """,
    )
    project.run(
        test="""
        from pytest_pgdbm import pgdbm_db

        leaves_db = pgdbm_db("leaves", seed={"t": [{"id": 1}]})

        async def test_it(leaves_db, users_db, pgdbm_db):
            again = await pgdbm_db("leaves", fresh=True)
            assert await again.fetch_value("select count(*) from {{tables.t}}") == 1
            assert await users_db.fetch_value("select count(*) from pg_locks where objid = 4711") == 0
            assert await users_db.fetch_value("select count(*) from pg_class where relname = 'scratch'") == 0
            assert await users_db.fetch_value("show work_mem") != "1MB"
        """
    ).assert_outcomes(passed=1)


def test_files_that_run_in_another_order_than_their_numbers_are_told(project: Project) -> None:
    project.write("migrations/users/10_late.sql", "select 1;")
    project.write("migrations/users/9_early.sql", "select 1;")
    result = project.run("-W", "default", test="async def test_it(users_db): pass")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PgdbmWarning: service 'users': *10_late.sql*9_early.sql*"])


def test_a_migration_timeout_ends_a_migration(project: Project) -> None:
    project.write("migrations/slow/001.sql", "select pg_sleep(20);")
    result = project.run(
        "--pgdbm-migration-timeout=0.2", test="async def test_it(pgdbm_db):\n    await pgdbm_db('slow')\n"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*slow/001.sql*",
            "E*it took longer than the 0.2 seconds that pgdbm_migration_timeout gives a migration",
        ]
    )


def test_seeds_of_every_kind_are_planted_in_order_as_the_tests_role(project: Project) -> None:
    project.write("more.sql", "insert into {{tables.users}} (email) select email || '!' from {{tables.users}};")
    project.write(
        "conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        async def order(db):
            async with db.transaction() as one, db.acquire() as other:
                users = await db.sibling("users").fetch_all("select id from {{tables.users}} order by id")
                await one.execute("insert into {{tables.orders}} (user_id) values ($1)", users[0]["id"])
                assert await other.fetchval("select current_user") == await one.fetch_value("select session_user")

        users_db = pgdbm_db("users", seed=[{"users": [{"email": "a"}, {"email": "b"}]}, "more.sql"])
        orders_db = pgdbm_db("orders", seed=order)
        """,
    )
    project.run(
        test="""
        async def test_it(users_db, orders_db):
            rows = await users_db.fetch_all("select email from {{tables.users}} order by id")
            emails = [row["email"] for row in rows]
            assert emails == ["a", "b", "a!", "b!"]
            assert await orders_db.fetch_value("select count(*) from {{tables.orders}}") == 1
        """
    ).assert_outcomes(passed=1)


FOREIGN = ("create schema theirs", "create table theirs.t (id int primary key)")


@pytest.mark.parametrize(
    ("sql", "line"),
    [
        ("create table {{tables.t}} (id int references theirs.t);", "*theirs.t*"),
        ("create view {{tables.v}} as select * from theirs.t;", "*theirs.t*"),
        ("create table public.mine (id int);", "*public.mine*"),
        ("create function {{schema}}.g() returns int language sql as $$ select id from theirs.t $$;", "*theirs.t*"),
        (
            "create function {{schema}}.g() returns int language plpgsql"
            " as $$ begin return (select 1 from users.users); end $$;",
            "*users.users*",
        ),
    ],
    ids=["foreign key", "view", "a table in public", "function body", "another service's real name"],
)
def test_a_migration_that_reaches_outside_is_an_error(project: Project, query: Query, sql: str, line: str) -> None:
    for statement in FOREIGN:
        query(statement)
    project.write("migrations/reaching/001.sql", sql)
    result = project.run(test="async def test_it(pgdbm_db):\n    await pgdbm_db('reaching')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*a migration reached outside its schema*", f"E{line}"])


def test_what_only_looks_like_reaching_outside_is_none(project: Project) -> None:
    project.write(
        "migrations/tags/001.sql",
        """
        create extension if not exists citext;
        create table {{tables.tags}} (name public.citext, made timestamptz default pg_catalog.now());
        -- select * from users.users
        create view {{tables.names}} as select tags.name from {{tables.tags}} tags where tags.name <> 'users.users';
        create function {{schema}}.f(users int) returns bigint language sql
            as 'select extract(epoch from users.made)::bigint from (select pg_catalog.now() as made) users';
        """,
    )
    project.run(test="async def test_it(pgdbm_db):\n    await pgdbm_db('tags')\n").assert_outcomes(passed=1)


def test_rows_are_planted_in_their_order_whatever_columns_they_have(workshop: Workshop) -> None:
    async def go() -> None:
        rows = [{"a": 1}, {"a": 2}, {}, {}, {"b": "x", "a": 3}, {"a": 4, "b": "y"}, {"a": 5}, *[{"b": "z"}] * 2000]
        sql = "create table {{tables.t}} (id serial, a int, b text default 'none');"
        services = {"rows": workshop.service("rows", sql, seed={"t": rows, "t2": []})}
        async with workshop.built("rows", services) as (home, built), connected(workshop.url) as connection:
            planted = await connection.fetch(f"select id, a, b from {built.schemas['rows']}.t order by ctid")
            expected = [(row.get("a"), row.get("b", "none")) for row in rows]
            assert [tuple(row) for row in planted] == [(at, *row) for at, row in enumerate(expected, start=1)]
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_a_seed_without_a_statement_plants_nothing(workshop: Workshop) -> None:
    async def go() -> None:
        seeds = [workshop.folder / f"{number}.sql" for number in range(4)]
        for path, text in zip(
            seeds, ["", "-- later\n", ";\n/* ; */", "insert into {{tables.t}} values (1)"], strict=True
        ):
            path.write_text(text)
        service = workshop.service("users", "create table {{tables.t}} (id int)", seed=seeds)
        async with workshop.built("users", {"users": service}) as (home, built), connected(workshop.url) as connection:
            assert await connection.fetchval(f"select count(*) from {built.schemas['users']}.t") == 1
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_the_runner_reads_the_files_once(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """pgdbm 0.5 would read all of them again for each."""
    read: list[str] = []
    calculate = AsyncMigrationManager._calculate_checksum

    def listening(self: AsyncMigrationManager, content: str) -> str:
        read.append(content)
        return calculate(self, content)

    async def go() -> None:
        monkeypatch.setattr(AsyncMigrationManager, "_calculate_checksum", listening)
        files = {f"{number:02d}.sql": f"create table {{{{tables.t{number}}}}} ()" for number in range(20)}
        async with workshop.built("users", {"users": workshop.service("users", files)}) as (home, built):
            assert read == list(files.values())
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())
