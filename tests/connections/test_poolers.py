"""Through PgBouncer: what needs a session is told at once, or goes past it by a URL of its own; tests go through it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Project
from connections.bouncers import Through
from databases import execute
from workshop import Workshop

from pytest_pgdbm import PgdbmServer
from pytest_pgdbm.connections import login, poolers
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ServerFailed

MODES = ["transaction", "statement"]


def knock(url: str, admin_url: str | None = None) -> Endpoint:
    """The first login by these URLs."""
    mine, parts = Login("shown"), urlsplit(url)
    place = "" if admin_url is None else admin_url.rpartition("@")[2].partition("/")[0]
    given = Endpoint(
        "url",
        "",
        parts.hostname or "",
        parts.port or 0,
        "",
        mine,
        mine,
        url=url,
        admin_url=admin_url,
        admin_place=place,
    )
    return asyncio.run(login.first_login(given, application_name="pooler test"))


def said(url: str, admin_url: str | None = None) -> tuple[str, str]:
    """Why a login by these URLs fails, and what mends it."""
    with pytest.raises(ServerFailed) as caught:
        knock(url, admin_url)
    return caught.value.why, caught.value.remedy


def at(url: str) -> str:
    return url.rpartition("@")[2].partition("/")[0]


@pytest.mark.parametrize(
    "more", [{}, {"server_round_robin": 1, "min_pool_size": 3}, {"ignore_startup_parameters": None}]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_pooler_without_sessions_is_refused_at_once(through: Through, mode: str, more: dict[str, object]) -> None:
    with through(mode, **more) as url:
        assert said(url) == (
            f"{at(url)} is a connection pooler in transaction or statement mode: the server process behind a"
            " connection changes from one transaction to the next, so no session is there to hold the plugin's locks"
            " and settings",
            "give the server's own address in --pgdbm-admin-url (PGDBM_ADMIN_URL, pgdbm_admin_url) as well, or instead"
            " in --pgdbm-url; tests then still use the pooler, or do not",
        )


def test_what_is_between_is_found(through: Through, database_url: str) -> None:
    assert knock(database_url).pooling == "none"
    assert knock(database_url, database_url).pooling == "none"
    with through("session") as url:
        assert knock(url).pooling == "session"
        assert knock(url, database_url).pooling == "session"
        assert knock(database_url, url).pooling == "none"
    for mode in MODES:
        with through(mode) as url:
            assert knock(url, database_url).pooling == "transaction"


def test_an_admin_url_through_a_pooler_is_refused(through: Through, database_url: str) -> None:
    with through("transaction") as url:
        why, remedy = said(database_url, url)
    assert why.startswith(f"{at(url)} (admin-url) is a connection pooler in transaction or statement mode: ")
    assert remedy == "give the server's own address in --pgdbm-admin-url (PGDBM_ADMIN_URL, pgdbm_admin_url)"


def test_one_session_is_too_few(through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poolers, "SECONDS_FOR_A_SESSION", 0.5)
    with through("session", default_pool_size=1) as url:
        assert said(url) == (
            f"{at(url)} is a connection pooler that had no second session for 0.5 seconds",
            "raise its default_pool_size (PgBouncer), or give the server's own address in the URL",
        )


def test_startup_parameters_that_sessions_need_are_asked_for(through: Through, database_url: str) -> None:
    with through("session", ignore_startup_parameters=None) as url:
        why, remedy = said(url)
        assert why == (
            f"{at(url)} is a connection pooler that refuses a connection"
            " (unsupported startup parameter: statement_timeout)"
        )
        assert "ignore_startup_parameters = search_path,jit,statement_timeout,lock_timeout," in remedy
    execute(database_url, f"alter database {database_url.rpartition('/')[2]} set lock_timeout = '3s'")
    with through("session") as url:
        assert said(url) == (
            f"{at(url)} is a connection pooler that drops startup parameters: lock_timeout is 3s there, and the"
            " plugin's own work needs it off",
            "give the server's own address in --pgdbm-admin-url (PGDBM_ADMIN_URL, pgdbm_admin_url) as well",
        )
        assert knock(url, database_url).pooling == "session"


def test_two_urls_that_lead_to_different_databases(
    through: Through, database_url: str, pgdbm_server: PgdbmServer
) -> None:
    mine = database_url.rpartition("/")[2]
    with through("transaction") as url:
        why, remedy = said(url, pgdbm_server.url)
        place = f"{pgdbm_server.host}:{pgdbm_server.port}"
        assert why == (
            f'the two URLs lead to different databases: database "{mine}" at {at(url)}, and database'
            f' "{pgdbm_server.database}" of another server or of that name at {place} (admin-url); a lock taken in the'
            " one is not seen in the other"
        )
        assert remedy == (
            "give the address of the server behind the pooler, and the same database, in --pgdbm-admin-url"
            " (PGDBM_ADMIN_URL, pgdbm_admin_url)"
        )


def test_two_urls_of_different_roles(through: Through, workshop: Workshop, database_url: str) -> None:
    own = workshop.own
    superuser = own.tcp_url(workshop.database, own.admin)
    with through("transaction") as url:
        found = knock(url, superuser)
        assert (found.admin.user, found.login.user) == (own.admin.user, own.login.user)
        with other_role(workshop) as other:
            why, remedy = said(url, other)
    role, name = quoted(own.login.user), quoted(urlsplit(other).username)
    assert why == (
        f"the two URLs log in as different roles, {role} and, by admin-url, {name}, which is no superuser: what it"
        " makes would not be the tests' own"
    )
    assert remedy == (
        f"log in as {role} in --pgdbm-admin-url (PGDBM_ADMIN_URL, pgdbm_admin_url) too, or as a superuser"
    )


def quoted(name: str | None) -> str:
    return f'"{name}"'


@contextmanager
def other_role(workshop: Workshop) -> Iterator[str]:
    """The URL of a role that may do next to nothing."""
    name = f"other_of_{workshop.database}"
    superuser = workshop.own.tcp_url(workshop.database, workshop.own.admin)
    execute(superuser, f"create role {name} login password 'x'")
    yield f"postgresql://{name}:x@{workshop.own.host}:{workshop.own.port}/{workshop.database}"
    execute(superuser, f"drop role {name}")


SUITE = """
    import asyncio
    import pytest
    from pytest_pgdbm import pgdbm_db

    users_db = pgdbm_db("users", seed={"users": [{"email": "ada@example.org"}]})
    orders_db = pgdbm_db("orders")

    @pytest.mark.parametrize("number", range(4))
    async def test_rows_are_this_tests_alone(users_db, orders_db, number):
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 1
        async with users_db.transaction() as work:
            await work.execute("insert into {{tables.users}} (email) values ($1)", "bob@example.org")
        await orders_db.execute("insert into {{tables.orders}} (user_id) values (1)")
        assert await orders_db.fetch_value(
            "select count(*) from {{tables.orders}} join {{tables.users.users}} on true"
        ) == 2

    async def test_many_at_once(users_db, pgdbm_pool):
        async def one(number):
            async with pgdbm_pool.acquire() as connection:
                return await connection.fetchval("select $1::int", number)
        assert await asyncio.gather(*(one(number) for number in range(100))) == list(range(100))

    async def test_a_name_without_a_schema_is_not_found(users_db):
        with pytest.raises(Exception, match="does not exist"):
            await users_db.fetch_value("select count(*) from users")

    async def test_where_it_goes(pgdbm_url, pgdbm_server, users_db, pytestconfig):
        assert pgdbm_url == users_db.dsn == pgdbm_server.url
        assert str(pgdbm_server.port) in pytestconfig.getoption("pgdbm_url")
"""


def pin(url: str) -> None:
    """Has the server pin the path of new sessions, as pgdbm advises for poolers."""
    role, database = urlsplit(url).username, url.rpartition("/")[2]
    execute(url, f'alter role "{role}" in database "{database}" set search_path = pg_catalog')


def pooled(project: Project, url: str) -> list[str]:
    """The arguments of a run whose tests go through the pooler at this URL, and whose administration does not."""
    direct, project.url = project.url, url
    return [f"--pgdbm-admin-url={direct}"]


@pytest.mark.parametrize("more", [[], ["--pgdbm-reuse=off"], ["-n2"]])
def test_a_suite_goes_through_a_pooler_of_transactions(project: Project, through: Through, more: list[str]) -> None:
    pin(str(project.url))
    with through("transaction") as url:
        project.run_apart(*pooled(project, url), *more, test=SUITE).assert_outcomes(passed=7)


def test_a_suite_goes_through_a_pooler_of_sessions(project: Project, through: Through) -> None:
    pin(str(project.url))
    with through("session") as url:
        project.url = url
        project.run_apart(test=SUITE).assert_outcomes(passed=7)


def test_nothing_is_left_after_runs_through_a_pooler(project: Project, through: Through, query: Any) -> None:
    pin(str(project.url))
    with through("transaction") as url:
        project.run(*pooled(project, url), test=SUITE).assert_outcomes(passed=7)
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm'") == []
