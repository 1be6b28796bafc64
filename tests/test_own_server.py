"""Runs on a server of the run's own, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Project

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


def test_tests_and_migrations_run_as_an_ordinary_role_that_owns_what_it_makes(own_server_project: Project) -> None:
    own_server_project.write(
        "migrations/notes/001.sql",
        """
        create extension citext;
        create table {{tables.notes}} (id serial primary key, owner public.citext not null default current_user);
        insert into {{tables.notes}} (owner) values ('ann');
        alter table {{tables.notes}} enable row level security;
        alter table {{tables.notes}} force row level security;
        create policy own_rows on {{tables.notes}} using (owner = current_setting('app.reader', true)::public.citext);
        """,
    )
    own_server_project.run(
        test="""
        import asyncpg, pytest
        from pgdbm.errors import QueryError

        async def test_the_role_is_ordinary(users_db, pgdbm_server):
            role = await users_db.fetch_one("select rolname, rolsuper from pg_roles where rolname = current_user")
            assert role == {"rolname": pgdbm_server.user, "rolsuper": False}
            owner = await users_db.fetch_value(
                "select nspowner::regrole::text from pg_namespace where nspname = $1", users_db.schema
            )
            assert owner == pgdbm_server.user

        async def test_row_level_security_means_something(pgdbm_db):
            notes = await pgdbm_db("notes")
            count = "select count(*) from {{tables.notes}}"
            async with notes.acquire() as connection:
                assert await connection.fetchval(notes.prepare_query(count)) == 0
                await connection.execute("set app.reader = 'ann'")
                assert await connection.fetchval(notes.prepare_query(count)) == 1

        async def test_tcp_asks_for_the_password(pgdbm_server):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    host=pgdbm_server.host, port=pgdbm_server.port, user=pgdbm_server.user,
                    database=pgdbm_server.database, password="guess",
                )

        async def test_the_url_lets_in(pgdbm_url, pgdbm_server):
            assert pgdbm_server.kind == "embedded"
            connection = await asyncpg.connect(pgdbm_url)
            assert await connection.fetchval("show fsync") == "off"
            await connection.close()
        """
    ).assert_outcomes(passed=4)


def test_the_role_can_be_a_superuser(own_server_project: Project) -> None:
    own_server_project.run(
        "--pgdbm-role=superuser",
        test="""
        async def test_it(users_db):
            assert await users_db.fetch_value("select rolsuper from pg_roles where rolname = current_user")
        """,
    ).assert_outcomes(passed=1)


def test_a_hostile_environment_does_not_reach_the_server(
    own_server_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {
        "PGHOST": "db.example.org",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "production",
        "PGPASSWORD": "wrong",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGSERVICE": "missing",
        "PGDATA": "/nowhere",
        "PGSSLMODE": "verify-full",
        "PGTARGETSESSIONATTRS": "standby",
        "PGTZ": "Nowhere/Never",
        "LC_ALL": "xx_YY.UTF-8",
        "DATABASE_URL": "postgresql://me@db.example.org/production",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    own_server_project.run_apart(
        test="""
        async def test_it(users_db, pgdbm_server):
            assert pgdbm_server.kind == "embedded"
            await users_db.execute("insert into {{tables.users}} (email) values ('a')")
        """
    ).assert_outcomes(passed=1)


@pytest.mark.skipif(not DEBIAN, reason="needs a system PostgreSQL besides the wheel's")
def test_an_installation_that_has_the_needed_extensions_is_preferred(own_server_project: Project) -> None:
    own_server_project.write(
        "migrations/keys/001.sql",
        """
        create extension if not exists pgcrypto;
        create extension if not exists "uuid-ossp";
        create table {{tables.keys}} (id uuid primary key default public.uuid_generate_v4());
        """,
    )
    test = """
        async def test_it(pgdbm_db, pgdbm_server):
            keys = await pgdbm_db("keys")
            await keys.execute("insert into {{tables.keys}} default values")
            assert await keys.fetch_value("select length(public.gen_random_bytes(4))") == 4
    """
    unnamed = own_server_project.run(test=test)
    unnamed.assert_outcomes(passed=1)
    told = "the server was PostgreSQL *, since PostgreSQL * (wheel *) has no pgcrypto, uuid-ossp"
    unnamed.stdout.fnmatch_lines(["pgdbm: embedded PostgreSQL * (wheel *); *", "*= pgdbm =*", told])
    assert own_server_project.run_apart("-n", "2", test=test).stdout.str().count("the server was PostgreSQL") == 1
    named = own_server_project.run("--pgdbm-extensions=pgcrypto,uuid-ossp", test=test)
    named.assert_outcomes(passed=1)
    named.stdout.no_fnmatch_line("pgdbm: embedded PostgreSQL * (wheel *); *")
    named.stdout.no_fnmatch_line("the server was *")


def test_an_extension_type_off_the_search_path_is_told_with_both_ways_out(own_server_project: Project) -> None:
    own_server_project.write(
        "migrations/tags/001.sql", "create extension citext;\ncreate table {{tables.tags}} (name citext);"
    )
    test = "async def test_it(pgdbm_db):\n    await pgdbm_db('tags')\n"
    result = own_server_project.run(test=test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*migrations/tags/001.sql, line 2",
            'E*the server says: type "citext" does not exist',
            "E*HINT: *write public.citext, or set pgdbm_search_path = pg_catalog, public here and*",
        ]
    )
    own_server_project.run("--pgdbm-search-path=pg_catalog, public", test=test).assert_outcomes(passed=1)


def test_an_extension_that_is_nowhere_is_told_with_the_ways_out(own_server_project: Project) -> None:
    own_server_project.write("migrations/keys/001.sql", "create extension no_such_thing;")
    result = own_server_project.run(test="async def test_it(pgdbm_db):\n    await pgdbm_db('keys')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*extension 'no_such_thing' is not available: looked for it on the server (embedded, *extension)",
            "E*to mend it: use a PostgreSQL that has it: a system package with contrib*",
        ]
    )
