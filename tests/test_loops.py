"""The pool and the event loops: every kind of loop that a test can run in, each in a run of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import asyncpg
import pytest
from conftest import Project

Query = Callable[..., list[asyncpg.Record]]

HELP = """
import asyncio
import contextlib
import time

import asyncpg

ADD = "insert into {{tables.users}} (email) values ($1) returning id"
COUNT = "select count(*) from {{tables.users}}"
POOL = "select count(*) from pg_stat_activity where application_name like 'pgdbm%pool'"


async def check(db):
    '''The schema is this test's own: empty at first, and the first id is 1.'''
    assert await db.fetch_value(COUNT) == 0
    assert await db.fetch_value(ADD, "a@example.org") == 1


async def fill(pool):
    '''Takes all connections that the pool may have, at once.'''
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(pool.get_max_size()):
            await asyncio.wait_for(stack.enter_async_context(pool.acquire()), 5)


def pool_connections(url):
    async def count():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(POOL)
        finally:
            await connection.close()

    return asyncio.run(count())


def assert_no_connection(url):
    '''A server process ends a moment after its connection was closed.'''
    deadline = time.monotonic() + 5
    while (left := pool_connections(url)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == 0
"""


@pytest.fixture
def loops(project: Project) -> Project:
    """A project whose tests share a few helpers."""
    project.write("help.py", HELP)
    project.write(
        "conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        users_db = pgdbm_db("users")
        orders_db = pgdbm_db("orders")
        """,
    )
    return project


@pytest.fixture
def assert_nothing_left(query: Query) -> Callable[[], None]:
    """Neither a connection nor a schema of the run is left on the server."""

    def check() -> None:
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        wait_until(lambda: query(others)[0][0] == 0)
        assert query("select nspname from pg_namespace where nspname like 'pgdbm%'") == []

    return check


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


EACH_SCOPE = """
import asyncio
import pytest
from help import assert_no_connection, check

# Given up at the end of each loop: a pool that outlives its loop would be seen by the next synchronous test.

@pytest.mark.asyncio
async def test_function(users_db):
    await check(users_db)

def test_no_connection_after_a_function_loop(pgdbm_url):
    assert_no_connection(pgdbm_url)

@pytest.mark.asyncio(loop_scope="class")
class TestClass:
    async def test_one(self, users_db, pgdbm_pool):
        await check(users_db)
        TestClass.pid = await pgdbm_pool.fetchval("select pg_backend_pid()")

    @pytest.mark.asyncio(loop_scope="function")
    async def test_between(self, users_db):
        await check(users_db)

    async def test_two(self, users_db, pgdbm_pool):
        await check(users_db)
        assert await pgdbm_pool.fetchval("select pg_backend_pid()") == TestClass.pid

def test_no_connection_after_a_class_loop(pgdbm_url):
    assert_no_connection(pgdbm_url)

@pytest.mark.asyncio(loop_scope="module")
async def test_module(users_db):
    await check(users_db)

@pytest.mark.asyncio(loop_scope="package")
async def test_package(users_db):
    await check(users_db)

@pytest.mark.asyncio(loop_scope="session")
async def test_session(users_db, orders_db, pgdbm_pool):
    await check(users_db)
    assert await orders_db.fetch_value("select count(*) from {{tables.users.users}}") == 1
    assert pgdbm_pool.get_size() >= 1

@pytest.mark.asyncio(loop_scope="module")
async def test_module_again(users_db):
    await check(users_db)

def test_synchronous(users_db):
    asyncio.run(check(users_db))
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_each_loop_scope_of_pytest_asyncio_in_one_run(
    loops: Project, mode: str, assert_nothing_left: Callable[[], None]
) -> None:
    loops.write(
        "test_after.py",
        """
        from help import pool_connections

        def test_package_and_session_loops_have_theirs_until_they_end(pgdbm_url):
            assert pool_connections(pgdbm_url) == 2
        """,
    )
    result = loops.run("-o", f"asyncio_mode={mode}", "test_it.py", "test_after.py", test=EACH_SCOPE)
    result.assert_outcomes(passed=12)
    assert_nothing_left()


def test_a_session_wide_default_loop_keeps_its_connections(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    result = loops.run(
        "-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session",
        test="""
        import pytest
        from help import check

        pids = set()

        @pytest.fixture(scope="session")
        async def application(pgdbm_pool):
            async with pgdbm_pool.acquire() as connection:
                yield connection

        @pytest.mark.parametrize("time", range(3))
        async def test_pid(users_db, application, time):
            await check(users_db)
            assert await application.fetchval("select 1") == 1
            pids.add(await users_db.fetch_value("select pg_backend_pid()"))
            assert len(pids) == 1
        """,
    )  # fmt: skip
    result.assert_outcomes(passed=3)
    assert_nothing_left()


ANYIO = """
import pytest
from help import assert_no_connection, check

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
async def user(users_db):
    await check(users_db)
    yield await users_db.fetch_value("select email from {{tables.users}}")
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 1

async def test_fixture(user):
    assert user == "a@example.org"

async def test_factory(pgdbm_db):
    users, orders = await pgdbm_db("users", "orders")
    await check(users)

def test_no_connection(pgdbm_url):
    assert_no_connection(pgdbm_url)
"""


@pytest.mark.parametrize("asyncio_plugin", ["no:asyncio", "asyncio"])
def test_anyio_with_and_without_pytest_asyncio(
    loops: Project, asyncio_plugin: str, assert_nothing_left: Callable[[], None]
) -> None:
    without = "[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider -p no:asyncio\n"
    if asyncio_plugin == "no:asyncio":
        loops.write("pytest.ini", without)
    result = loops.run("-o", "asyncio_mode=strict", test=ANYIO) if asyncio_plugin == "asyncio" else loops.run(test=ANYIO)
    result.assert_outcomes(passed=3)
    assert_nothing_left()


def test_under_trio_the_error_says_that_asyncio_is_needed(loops: Project) -> None:
    result = loops.run(
        "-o", "asyncio_mode=strict",
        test="""
        import pytest

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return "trio"

        async def test_manager(users_db):
            await users_db.fetch_value("select 1")

        async def test_factory(pgdbm_db):
            await pgdbm_db("users")
        """,
    )  # fmt: skip
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines_random(
        ["E *pgdbm and asyncpg need a running asyncio event loop*choose the asyncio backend (trio cannot be used)*"] * 2
    )
