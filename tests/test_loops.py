"""The pool and the event loops: every kind of loop that a test can run in, each in a run of its own."""

from __future__ import annotations

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
    arguments = [] if asyncio_plugin == "no:asyncio" else ["-o", "asyncio_mode=strict"]
    result = loops.run(*arguments, test=ANYIO)
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
    error = (
        "RuntimeError: pgdbm and asyncpg need a running asyncio event loop, and there is none here. Under anyio, choose"
        " the asyncio backend (trio cannot be used); in a synchronous test, go through the application, or"
        " asyncio.run()"
    )
    assert sum(error in line for line in result.outlines) == 2


APPLICATIONS = """
import asyncio
import contextlib
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from help import ADD, COUNT, assert_no_connection, check, fill
from pgdbm import AsyncDatabaseManager

def application(pool):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        app.state.users = None
        yield
        await pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/users/{email}")
    async def add(email: str, request: Request):
        return await request.app.state.users.fetch_value(ADD, email)

    @app.get("/twice")
    async def twice():
        async with pool.acquire() as one, pool.acquire() as other:
            return one.get_server_pid() != other.get_server_pid()

    return app

@pytest.fixture(scope="session")
def app(pgdbm_pool):
    return application(pgdbm_pool)

@pytest.fixture
def client(app, users_db):
    with TestClient(app) as client:
        app.state.users = users_db
        yield client

@pytest.mark.parametrize("time", range(3))
def test_a_session_wide_application_on_a_schema_of_each_test(client, users_db, time):
    assert client.post("/users/a@example.org").json() == 1
    assert client.post("/users/b@example.org").json() == 2
    assert client.get("/twice").json() is True
    assert asyncio.run(users_db.fetch_value(COUNT)) == 2

def test_no_connection_after_the_portals_loop(pgdbm_url):
    assert_no_connection(pgdbm_url)

async def test_a_client_without_lifespan_in_an_asynchronous_test(app, users_db, pgdbm_pool):
    app.state.users = AsyncDatabaseManager(pool=pgdbm_pool, schema=users_db.schema)
    client = TestClient(app)
    assert await asyncio.to_thread(lambda: client.post("/users/a@example.org").json()) == 1
    assert await users_db.fetch_value(COUNT) == 1

def test_several_clients_at_once(pgdbm_pool, users_db, orders_db):
    apps = [application(pgdbm_pool) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(TestClient(app)) for app in apps]
        for app in apps:
            app.state.users = users_db
        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(each.post, f"/users/{i}@example.org") for i, each in enumerate(clients * 5)]
            assert sorted(call.result().json() for call in calls) == list(range(1, 21))

def test_threads_with_loops_of_their_own(users_db):
    errors = []

    def work(number):
        try:
            for step in range(3):
                asyncio.run(users_db.execute(ADD, f"{number}.{step}@example.org"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert asyncio.run(users_db.fetch_value(COUNT)) == 9

async def test_a_thread_beside_the_tests_own_loop(users_db):
    await check(users_db)
    assert await asyncio.to_thread(lambda: asyncio.run(users_db.fetch_value(COUNT))) == 1

def test_the_factory_without_a_loop(pgdbm_db):
    users, orders = pgdbm_db("users", "orders").get()
    assert pgdbm_db("users").get() is users
    assert pgdbm_db("users", fresh=True).get() is not users
    asyncio.run(check(users))

async def test_the_factory_from_many_tasks(pgdbm_db):
    asked = [pgdbm_db(name) for name in ["users", "orders"] * 4]
    managers = await asyncio.gather(*asked, *(asyncio.to_thread(pgdbm_db("users").get) for _ in range(3)))
    users = await pgdbm_db("users")
    assert set(managers) == {users, await pgdbm_db("orders")}
    await check(users)

async def test_the_factory_blocks_nobody(pgdbm_db):
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turn())
    await pgdbm_db("users")
    task.cancel()
    assert turns > 10

class TestIsolated(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def databases(self, users_db, pgdbm_db):
        self.users, self.pgdbm_db = users_db, pgdbm_db

    async def asyncSetUp(self):
        await check(self.users)

    async def test_manager(self):
        assert await self.users.fetch_value(COUNT) == 1

    async def test_factory(self):
        assert await self.pgdbm_db("users") is self.users

@pytest.fixture
def plain_loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

@pytest.mark.parametrize("time", range(2))
def test_a_plain_loop(plain_loop, users_db, time):
    plain_loop.run_until_complete(check(users_db))
    plain_loop.run_until_complete(fill(users_db.pool))

async def test_a_plain_loop_that_is_closed_inside_of_another(users_db):
    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, check(users_db))
    loop.close()

def test_no_connection_after_plain_loops(pgdbm_url):
    assert_no_connection(pgdbm_url)

forgotten = asyncio.new_event_loop()

def test_a_loop_that_nobody_closes(users_db):
    forgotten.run_until_complete(check(users_db))

serving = asyncio.new_event_loop()
threading.Thread(target=serving.run_forever, daemon=True).start()

def test_a_loop_that_runs_for_ever(users_db):
    asyncio.run_coroutine_threadsafe(check(users_db), serving).result(5)
"""


def test_applications_threads_and_loops_of_the_users_own(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    result = loops.run_apart(test=APPLICATIONS)
    result.assert_outcomes(passed=19)
    assert_nothing_left()
