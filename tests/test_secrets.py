"""A password is in nothing that a run prints, however it fails and however much pytest is asked to show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from conftest import Project
from workshop import Workshop

SECRET = "p@ss:w/o%rd=é"

FAILING = """
    import asyncio
    import pytest
    from pytest_pgdbm import pgdbm_db
    from pytest_pgdbm.connections import crowd

    crowd.SECONDS_TO_WAIT = 1
    users_db = pgdbm_db("users")

    async def test_more_connections_than_there_are(users_db, pgdbm_pool, pgdbm_url, pgdbm_server):
        limit = f"alter database {pgdbm_server.database} connection limit "
        async with pgdbm_pool.acquire() as one:
            await one.execute(limit + "1")
            try:
                async with pgdbm_pool.acquire() as two:
                    assert not "reached", two
            finally:
                await one.execute(limit + "-1")

    async def test_a_failing_query(users_db, pgdbm_url):
        where = users_db.dsn
        await users_db.fetch_all("select * from nowhere")

    async def test_a_failing_build(pgdbm_db, pgdbm_url):
        await pgdbm_db("broken")

    async def test_a_failing_seed(pgdbm_db):
        async def load(db):
            where = db.dsn
            raise RuntimeError(f"cannot reach {where}")
        await pgdbm_db("users", seed=load)

    async def test_an_assertion(users_db, pgdbm_server, pgdbm_url, pgdbm_pool):
        assert [pgdbm_server, pgdbm_url, users_db, users_db.dsn, pgdbm_pool] == []

    async def test_the_server_cuts_everybody_off(users_db, pgdbm_pool):
        async with pgdbm_pool.acquire() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = current_user"
            )

    async def test_it_lets_nobody_in(users_db, pgdbm_pool, pgdbm_url):
        assert not "closed", await users_db.fetch_value("select current_database()")
"""


@pytest.fixture
def url(workshop: Workshop) -> Iterator[str]:
    """Of a role that owns the database, with a password that needs quoting."""
    user = f"secretive_of_{workshop.database}"

    async def does(statement: str) -> None:
        async with workshop.superuser() as superuser:
            await superuser.execute(statement)

    asyncio.run(does(f"create role {user} login password '{SECRET}'"))
    asyncio.run(does(f"alter database {workshop.database} owner to {user}"))
    own = workshop.own
    yield f"postgresql://{user}:{quote(SECRET, safe='')}@{own.host}:{own.port}/{workshop.database}"
    asyncio.run(does(f"alter database {workshop.database} owner to {own.login.user}"))
    asyncio.run(does(f"drop owned by {user}; drop role {user}"))


@pytest.mark.parametrize("more", [["-vv"], ["-vv", "--showlocals", "--full-trace"], ["-n", "2", "--showlocals"]])
def test_no_failure_shows_it(project: Project, url: str, more: list[str]) -> None:
    shown_by_no_failure(project, url, more)


def test_no_failure_shows_one_that_the_url_has_as_a_parameter(project: Project, url: str) -> None:
    who, _, rest = url.removeprefix("postgresql://").rpartition("@")
    user, _, password = who.partition(":")
    parameters = f"?user={user}&password={password}&application_name=x"
    shown_by_no_failure(project, f"postgresql://{rest}{parameters}", ["-vv", "--showlocals"])


def shown_by_no_failure(project: Project, url: str, more: list[str]) -> None:
    project.url = url
    project.write("migrations/broken/001.sql", "select nothing;")
    result = project.run_apart("-W", "default", *more, test=FAILING)
    output = result.stdout.str() + result.stderr.str()
    assert result.parseoutcomes()["failed"] >= 5
    assert "too many connections for database" in output or "-n" in more
    for secret in (SECRET, quote(SECRET, safe=""), quote(SECRET)):
        assert secret not in output, output[output.index(secret) - 500 : output.index(secret) + 100]
