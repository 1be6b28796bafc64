"""A migration that fails is told with its file, its line and the server's words; nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from databases import connected
from pgdbm import AsyncMigrationManager
from workshop import Workshop

from pytest_pgdbm import BuildError
from pytest_pgdbm.connections.opening import PGDBM_PATH


async def failure(workshop: Workshop, files: Mapping[str, str], *, stays: bool = False, **options: float) -> str:
    asked = workshop.ask("users", {"users": workshop.service("users", files)})
    async with workshop.home(**options) as home:
        with pytest.raises(BuildError) as caught:
            await home.build(asked.plan, ())
        assert bool(await workshop.schemas()) is stays
        asked = workshop.ask("other", {"other": workshop.service("other", "create table {{tables.t}} (id int)")})
        assert await home.drop([await home.build(asked.plan, ())]) == ([], [])
    return str(caught.value)


@pytest.mark.parametrize(
    ("sql", "line", "said"),
    [
        ("select 1;\n\ncreate tabel x ();", 3, 'syntax error at or near "tabel"'),
        ("select 'ü€😀';\nselect 'ü€😀', nothing;", 2, 'column "nothing" does not exist'),
        ("select 1;\r\nselect 2;\r\nselect nothing;", 3, 'column "nothing" does not exist'),
        ("-- ; one\n/* ; two\n*/ select 1;\nselect $$;\n$$;\nselect 1/0;", 6, "division by zero"),
        (
            "create table {{tables.t}} (id int);\n\n\n create table {{tables.t}} (id int);",
            4,
            'relation "t" already exists',
        ),
        (
            "create table {{tables.t}} (id int primary key);\ninsert into {{tables.t}} values (1);\n"
            "insert into {{tables.t}}\n  values (1);",
            3,
            'duplicate key value violates unique constraint "t_pkey"',
        ),
        ("select 1;\ndo $$\nbegin\n  perform 1;\n  raise 'no';\nend $$;", 5, "no"),
        ("select 1;\ndo $$ begin\n  perform 1/0; end $$;", 3, "division by zero"),
        ("select 1;\ndo $$\nbegin\n  perform nothing from {{tables.t}};\nend $$;", 4, "does not exist"),
        ("select 1;\ndo $x$\nbegin\n  selekt 1;\nend $x$;", 4, 'syntax error at or near "selekt"'),
        (
            "select 1;\ncreate function {{schema}}.f() returns int language plpgsql as $$\nbegin\n  retrun 1;\nend $$;",
            4,
            'syntax error at or near "retrun"',
        ),
        (
            "create function {{schema}}.f() returns int language plpgsql as $$\nbegin\n  return 1/0;\nend $$;\n"
            "select {{schema}}.f();",
            5,
            "division by zero",
        ),
        (
            "set search_path to {{schema}};\ncreate table t (id int);\ninsert into t\nvalues ('x');",
            4,
            "invalid input syntax",
        ),
        ("begin;\nselect 1;\ncommit;\nselect 1/0;", 4, "division by zero"),
        ("-- pgdbm:no-transaction\nselect 1;\nselect 1;\n-- a comment; with it\nselect 1/0;", 5, "division by zero"),
        ("-- pgdbm:no-transaction\nselect 1;\n\nselect\n nothing;", 5, 'column "nothing" does not exist'),
        ("-- pgdbm:no-transaction\nselect 1;\ndo $$\nbegin\n raise 'no';\nend $$;", 5, "no"),
    ],
)
def test_the_line_that_failed_is_named(workshop: Workshop, sql: str, line: int, said: str) -> None:
    async def go() -> None:
        files = {"001_first.sql": "create table {{tables.first}} (id int);", "002_bad.sql": sql}
        lines = (await failure(workshop, files)).splitlines()
        assert lines[0] == "a migration of service 'users' failed"
        assert lines[1].endswith(f"/002_bad.sql, line {line}")
        assert lines[2].startswith("  the server says: ")
        assert said in lines[2]

    asyncio.run(go())


def test_the_whole_message(workshop: Workshop) -> None:
    async def go() -> None:
        sql = """
            create function {{schema}}.twice(n int) returns int language plpgsql as $$
            begin
                return n / 0;
            end $$;
            create table {{tables.t}} (id int, n int generated always as ({{schema}}.twice(id)) stored);
        """
        sql = sql.replace("language plpgsql", "immutable language plpgsql") + "insert into {{tables.t}} values (1);"
        said = await failure(workshop, {"001.sql": sql})
        folder = workshop.folder / "services" / "users"
        assert said == (
            "a migration of service 'users' failed\n"
            f"  {folder}/001.sql, line 7\n"
            "  the server says: division by zero\n"
            "    CONTEXT:  PL/pgSQL function pgdbm_schema.twice(integer) line 3 at RETURN"
        ).replace("pgdbm_schema", _schema_in(said))

    asyncio.run(go())


def _schema_in(text: str) -> str:
    return next(word for word in text.split() if word.startswith("pgdbm_")).partition(".")[0]


def test_an_unqualified_name_gets_our_words(workshop: Workshop) -> None:
    async def go() -> None:
        said = await failure(workshop, {"001.sql": "create table users (id int);"})
        if PGDBM_PATH is None:  # pgdbm 0.4 pins no path, so that the table is made in the wrong place
            assert "001.sql: makes table public.users\n  to mend it: write {{tables.x}}" in said
        else:
            assert "HINT:  a table, type or function is created without a schema: write {{tables.x}}" in said
        said = await failure(workshop, {"001.sql": "create table {{tables.u}} (id int); insert into users values (1);"})
        assert "HINT:  write {{tables.users}}: a name without it is not found on a shared pool" in said

    asyncio.run(go())


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        (
            "create table {{tables.t}} (id int);\ncreate index concurrently by_id on {{tables.t}} (id);",
            "CREATE INDEX CONCURRENTLY",
        ),
        ("-- pgdbm: no-transaction\nvacuum;", "VACUUM"),
    ],
)
def test_what_cannot_run_in_a_transaction_is_told_with_the_line_that_mends_it(
    workshop: Workshop, sql: str, what: str
) -> None:
    async def go() -> None:
        said = await failure(workshop, {"001.sql": sql})
        assert said == (
            "a migration of service 'users' failed\n"
            f"  {workshop.folder}/services/users/001.sql, line 2\n"
            f"  the server says: {what} cannot run inside a transaction block\n"
            "  to mend it: give what cannot run in a transaction a file of its own, with the line"
            " '-- pgdbm:no-transaction': pgdbm sends the statements of such a file one by one, in no transaction"
        )

    asyncio.run(go())


def test_a_comment_that_pgdbm_sends_by_itself_is_told(workshop: Workshop) -> None:
    async def go() -> None:
        said = await failure(workshop, {"001.sql": "-- pgdbm:no-transaction\nselect 1;\n-- the end\n"})
        assert said == (
            "a migration of service 'users' failed\n"
            f"  {workshop.folder}/services/users/001.sql\n"
            "  pgdbm sends what stands after the last ';' of a file with '-- pgdbm:no-transaction' by itself, and a"
            " comment by itself cannot be executed; move it before the statement"
        )

    asyncio.run(go())


def test_a_migration_has_the_time_that_it_is_given_and_no_limit_of_the_database(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                await connection.execute(f"alter database {workshop.database} set {limit} = '100ms'")
        sql = "select pg_sleep(0.3);"
        async with workshop.built("users", {"users": workshop.service("users", sql)}) as (home, built):
            assert await home.drop([built]) == ([], [])
        said = await failure(workshop, {"001.sql": sql}, timeout=0.1)
        _head, where, why = said.splitlines()
        assert where.endswith("001.sql")
        assert why == "  it took longer than the 0.1 seconds that pgdbm_migration_timeout gives a migration"

    asyncio.run(go())


def test_the_time_is_for_all_statements_of_a_file_together(workshop: Workshop) -> None:
    async def go() -> None:
        said = await failure(workshop, {"001.sql": "select pg_sleep(0.2);" * 5}, timeout=0.5)
        assert "it took longer than the 0.5 seconds" in said

    asyncio.run(go())


def test_a_server_that_goes_away_is_told(workshop: Workshop) -> None:
    async def go() -> None:
        sql = "select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid());"
        # Without its connection the process cannot show any more that what it made is its own.
        said = await failure(workshop, {"001.sql": sql}, stays=True)
        assert said.startswith("a migration of service 'users' failed\n")
        assert "001.sql" in said
        assert "terminating connection due to administrator command" in said or "connection was closed" in said

    asyncio.run(go())


def test_what_a_schema_is_made_with_may_fail_too(workshop: Workshop) -> None:
    async def go() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", "select 1")})
        async with workshop.home() as home, workshop.superuser() as superuser:
            await superuser.execute(f"revoke create on database {workshop.database} from {workshop.own.login.user}")
            with pytest.raises(BuildError) as caught:
                await home.build(asked.plan, ())
            assert str(caught.value).splitlines()[0] == (
                f"the schemas of 'users' could not be made: permission denied for database {workshop.database}"
            )

    asyncio.run(go())


def test_a_set_is_built_by_pgdbm_and_is_found_applied(workshop: Workshop) -> None:
    """Also where the tracking table is another, and written in capitals."""

    async def go() -> None:
        service = workshop.service(
            "users",
            {"001.sql": "create table {{tables.t}} (id int)", "002.sql": "select 1"},
            migrations_table="Applied",
        )
        async with workshop.built("users", {"users": service}) as (home, built):
            from pytest_pgdbm.connections.terms import Term

            database = home.managers(built, Term("it"), built.schemas)["users"]
            for module in ("users", None):
                runner = AsyncMigrationManager(
                    database, str(service.migrations), migrations_table="Applied", module_name=module
                )
                result = await runner.apply_pending_migrations()
                assert (result["status"], result["skipped"]) == ("up_to_date", ["001.sql", "002.sql"])
            await database.pool.close()
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())
