"""A role that may make schemas in its database, and nothing else, is enough for isolation `schema`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import asyncpg
import pytest
from conftest import Project
from databases import execute
from workshop import Workshop

PASSWORD = "unprivileged"

SUITE = """
    import asyncio
    import asyncpg
    import pytest
    from pytest_pgdbm import pgdbm_db

    users_db = pgdbm_db("users", seed={"users": [{"email": "ada@example.org"}]})
    orders_db = pgdbm_db("orders")
    MAY = '''
        select rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls
            or exists (select from pg_auth_members where member = r.oid)
            or pg_has_role(datdba, 'member')
        from pg_roles r, pg_database where rolname = current_user and datname = current_database()
    '''

    async def test_the_role_may_do_nothing_else(pgdbm_pool):
        async with pgdbm_pool.acquire() as connection:
            assert await connection.fetchval(MAY) is False

    @pytest.mark.parametrize("number", range(3))
    async def test_rows_are_this_tests_alone(users_db, orders_db, number):
        await users_db.execute("insert into {{tables.users}} (email) values ('x')")
        await orders_db.execute("insert into {{tables.orders}} (user_id) values (2)")
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 2
        assert await orders_db.fetch_value("select count(*) from {{tables.orders}}") == 1

    async def test_changes_its_structure(users_db):
        await users_db.execute("alter table {{tables.users}} add age int")

    async def test_has_it_as_it_was(users_db):
        assert "age" not in await users_db.fetch_one("select * from {{tables.users}}")
"""

LEAKING = """
    async def test_leaves_a_transaction(users_db):
        connection = await users_db.pool.acquire()
        await connection.execute("begin")
        await connection.execute(users_db.prepare_query("insert into {{tables.users}} (email) values ('x')"))

    async def test_goes_on(users_db):
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
        await users_db.execute("insert into {{tables.users}} (email) values ('x')")
"""


@pytest.fixture
def url(workshop: Workshop) -> Iterator[str]:
    """Of a role that may connect to the database, and make schemas in it."""
    database, name = workshop.database, f"modest_of_{workshop.database}"
    superuser = superusers(workshop)
    execute(superuser, f"create role {name} login password '{PASSWORD}'")
    execute(
        superuser,
        f"revoke all on database {database} from public; grant create, connect on database {database} to {name}",
    )
    yield f"postgresql://{name}:{PASSWORD}@{workshop.own.host}:{workshop.own.port}/{database}"
    execute(superuser, f"drop owned by {name}; drop role {name}")


def superusers(workshop: Workshop) -> str:
    return workshop.own.tcp_url(workshop.database, workshop.own.admin)


@pytest.mark.parametrize("temporary", [True, False])
@pytest.mark.parametrize("more", [[], ["--pgdbm-reuse=off"], ["-n2"]])
def test_a_suite_runs_as_a_modest_role(
    project: Project,
    url: str,
    workshop: Workshop,
    more: list[str],
    temporary: bool,
    query: Callable[..., list[asyncpg.Record]],
) -> None:
    if temporary:
        execute(superusers(workshop), f"grant temporary on database {workshop.database} to public")
    project.url = url
    project.run_apart(*more, test=SUITE).assert_outcomes(passed=6)
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm'") == []


def test_what_a_test_leaves_behind_is_its_own_to_end(project: Project, url: str, query: Any) -> None:
    project.url = url
    result = project.run("-W", "default", test=LEAKING)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*test_leaves_a_transaction ended without giving back a connection that it took at *"])
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm'") == []


HELD = """
    import asyncpg

    async def test_lets_another_role_in(users_db, pgdbm_url):
        schema = users_db.schema
        await users_db.execute(f"grant usage on schema {schema} to public")
        await users_db.execute("grant select on {{tables.users}} to public")
        connection = await asyncpg.connect(OTHER)
        await connection.execute(f"begin; lock table {schema}.users in access share mode")
        kept.append(connection)

    async def test_goes_on(users_db):
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0

    kept = []
"""


def test_a_session_of_another_role_that_holds_a_schema_is_named_and_left_alone(
    project: Project, url: str, workshop: Workshop
) -> None:
    execute(superusers(workshop), f"grant connect on database {workshop.database} to public")
    project.url = url
    result = project.run_apart("-W", "default", test=f"OTHER = {workshop.url!r}\n" + dedent(HELD))
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*schema pgdbm_*_users * was kept: *server process * of role *"])
    result = project.run("-W", "default", test=LEAKING)
    result.assert_outcomes(passed=2, warnings=1)


def test_isolation_database_says_which_right_is_missing(project: Project, url: str, workshop: Workshop) -> None:
    project.url = url
    result = project.run("--pgdbm-isolation=database", test=LEAKING)
    result.stdout.fnmatch_lines(
        [
            f'*role "modest_of_{workshop.database}" may not create databases at *',
            f'*to mend it: have a superuser run ALTER ROLE "modest_of_{workshop.database}" CREATEDB; or leave the URL'
            " out, for a server of the run's own",
        ]
    )
