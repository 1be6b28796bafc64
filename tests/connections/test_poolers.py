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
from pytest_pgdbm.connections.opening import Opening
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ServerFailed

PATH = SearchPath.parse(None)
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
            f'database "{mine}" at {at(url)} and database "{pgdbm_server.database}" at {place} (admin-url) are not one'
            " database of one server: a lock taken in the one is not seen in the other"
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


def test_what_a_killed_run_has_left_is_swept_though_the_pooler_keeps_its_sessions(
    project: Project, through: Through, query: Any
) -> None:
    pin(str(project.url))
    with through("session") as url:
        project.url = url
        project.run_apart(test="import os, signal\ndef test_it(users_db): os.kill(os.getpid(), signal.SIGKILL)")
        assert query("select nspname from pg_namespace where nspname ~ '^pgdbm'") != []
        project.run_apart(test="def test_it(users_db): pass").assert_outcomes(passed=1)
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm'") == []


def test_a_path_that_the_pooler_drops_is_told(project: Project, through: Through) -> None:
    database = str(project.url).rpartition("/")[2]
    with through("transaction") as url:
        arguments = pooled(project, url)
        result = project.run(*arguments, test=SUITE)
        result.stdout.fnmatch_lines(
            [
                f"*ServerFailed: the pooler at {at(url)} drops the search path that pgdbm asks for: names without a"
                " schema would be found",
                f'*to mend it: have the server set it: ALTER ROLE "{urlsplit(url).username}" IN DATABASE "{database}"'
                " SET search_path = pg_catalog; or do without it: pgdbm_search_path = none here,"
                " shared_pool_search_path=None in the application",
            ]
        )
        project.run(*arguments, "--pgdbm-search-path=none", "-k", "rows").assert_outcomes(passed=4, deselected=3)


def test_startup_parameters_that_the_pool_needs_are_asked_for(project: Project, through: Through) -> None:
    with through("transaction", ignore_startup_parameters=None) as url:
        result = project.run(*pooled(project, url), test=SUITE)
    result.stdout.fnmatch_lines(
        [
            f"*ServerFailed: the pooler at {at(url)} refuses the pool of the tests (unsupported startup parameter: *)",
            "*to mend it: let the pooler drop what it does not know; in pgbouncer.ini: ignore_startup_parameters ="
            " search_path,jit,statement_timeout,lock_timeout,idle_in_transaction_session_timeout",
        ]
    )


MARKED = """
    import pytest

    @pytest.mark.pgdbm(search_path="pg_catalog, public")
    async def test_marked(users_db):
        pass
"""


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("", "search_path in the marker"),
        ("--pgdbm-search-path=$service, public", "pgdbm_search_path with $service"),
    ],
)
def test_a_path_that_must_be_set_for_each_test_is_refused(
    project: Project, through: Through, option: str, what: str
) -> None:
    test = MARKED.replace("pytest.mark.pgdbm", "pytest.mark.asyncio") if option else MARKED
    test = test.replace('(search_path="pg_catalog, public")', "") if option else test
    with through("transaction") as url:
        result = project.run(*pooled(project, url), *([option] if option else []), test=test)
    result.stdout.fnmatch_lines(
        [
            f"{what} has to be set on a connection, and the pooler at {at(url)} keeps no setting from one"
            " transaction to the next; write {{tables.x}} instead, or give the tests the server's own address"
        ]
    )


LEAKING = """
    import asyncio
    import pytest
    kept = []

    async def test_leaves_a_transaction(users_db):
        connection = await users_db.pool.acquire()
        await connection.execute("begin")
        await connection.execute(users_db.prepare_query("insert into {{tables.users}} (email) values ('x')"))

    async def test_leaves_a_query(users_db):
        async def hang():
            async with users_db.acquire() as connection:
                await connection.execute(users_db.prepare_query("lock {{tables.users}}; select pg_sleep(600)"))
        kept.append(asyncio.ensure_future(hang()))
        await asyncio.sleep(0.2)

    @pytest.mark.parametrize("number", range(3))
    async def test_goes_on(users_db, number):
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
        await users_db.execute("insert into {{tables.users}} (email) values ('x')")
"""


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_what_a_test_leaves_behind_the_pooler_ends(project: Project, through: Through, mode: str, query: Any) -> None:
    pin(str(project.url))
    with through(mode) as url:
        result = project.run(*pooled(project, url), "-W", "default", test=LEAKING)
    result.assert_outcomes(passed=5, warnings=1)
    result.stdout.fnmatch_lines(["*test_leaves_a_transaction ended without giving back a connection that it took at *"])
    asleep = "state = 'active' and query ~ 'pg_sleep\\(600'"
    assert query(f"select pid from pg_stat_activity where {asleep} and datname = current_database()") == []


WHOLE = """
    from pytest_pgdbm import pgdbm_database

    db = pgdbm_database("users", "orders")

    async def test_has_a_database(db):
        await db["users"].execute("insert into {{tables.users}} (email) values ('x')")
        assert await db["orders"].fetch_value("select count(*) from users.users") == 1
        owner = "select pg_get_userbyid(datdba) from pg_database where datname = current_database()"
        assert await db["users"].fetch_value(owner) == await db["users"].fetch_value("select current_user")

    async def test_has_it_again(db):
        assert await db["orders"].fetch_value("select count(*) from users.users") == 0

    async def test_may_hold_several(db):
        async with db.pool.acquire() as one, db.pool.acquire() as other:
            assert await one.fetchval("select 1") == await other.fetchval("select 1")
"""


def test_a_database_of_a_tests_own_goes_through_a_pooler_that_knows_every_name(
    project: Project, through: Through, workshop: Workshop
) -> None:
    superuser = workshop.own.tcp_url(workshop.database, workshop.own.admin)
    with through("session") as url:
        arguments = ["--pgdbm-search-path=none", *pooled(project, url)]
        project.run(*arguments, test=WHOLE).assert_outcomes(passed=3)
        project.url = workshop.url
    with through("transaction") as url:
        arguments = ["--pgdbm-search-path=none", *pooled(project, url)]
        project.run(*arguments, test=WHOLE).assert_outcomes(passed=3)
        project.run(*arguments, f"--pgdbm-admin-url={superuser}", test=WHOLE).assert_outcomes(passed=3)
    with through("transaction", databases=workshop.database) as url:
        project.url = url
        result = project.run(*arguments, test=WHOLE)
    result.stdout.fnmatch_lines(
        [
            f"*ServerFailed: the pooler at {at(url)} has no way to a database of a test's own (*)",
            "*let it pass on every name; in pgbouncer.ini, under [[]databases]: * = host=… port=…; or use isolation"
            " 'schema'",
        ]
    )


def test_the_tests_of_an_ordinary_role_are_administered_by_a_superuser(
    project: Project, through: Through, workshop: Workshop
) -> None:
    pin(str(project.url))
    superuser = workshop.own.tcp_url(workshop.database, workshop.own.admin)
    with through("transaction") as url:
        project.url = url
        project.run(f"--pgdbm-admin-url={superuser}", test=SUITE).assert_outcomes(passed=7)


def test_connections_end_with_their_loop(project: Project, through: Through) -> None:
    pin(str(project.url))
    test = """
        async def test_one(users_db, pgdbm_pool):
            async with pgdbm_pool.acquire(), pgdbm_pool.acquire():
                pass

        async def test_two(users_db, pgdbm_pool):
            async with pgdbm_pool.acquire(), pgdbm_pool.acquire():
                assert "connections end with their loop: a revived connection is served by another" in repr(pgdbm_pool)
    """
    with through("transaction") as url:
        project.run(*pooled(project, url), test=test).assert_outcomes(passed=2)


def test_no_statement_is_prepared_unless_the_pooler_sees_to_that(through: Through, database_url: str) -> None:
    def size(url: str, **options: int) -> object:
        endpoint = knock(url, database_url)
        opening = Opening(endpoint, endpoint.database, application_name="x", path=PATH, size=2, options=options)
        return opening._config.get("statement_cache_size")

    with through("transaction") as url:
        assert size(url) == 0
        assert size(url, statement_cache_size=50) == 50
    with through("session") as url:
        assert size(url) is None


def test_the_password_of_the_admin_url_is_in_nothing_that_is_printed(project: Project, through: Through) -> None:
    with through("transaction") as url:
        direct, project.url = str(project.url), url
        password = str(urlsplit(direct).password)
        secret = "".join(reversed(password))
        wrong = direct.replace(password, secret)
        result = project.run_apart(f"--pgdbm-admin-url={wrong}", "-vv", "--showlocals", "--full-trace", test=SUITE)
    result.stdout.fnmatch_lines([f"*{at(direct)} (admin-url) refused the login: password authentication failed *"])
    assert secret not in result.stdout.str() + result.stderr.str()
