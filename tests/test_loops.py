"""The pool and the event loops: every kind of loop that a test can run in, each in a run of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import asyncpg
import pytest
from conftest import INI, Project

Query = Callable[..., list[asyncpg.Record]]

HELP = """
import asyncio
import concurrent.futures
import contextlib
import os
import re
import time

import asyncpg

ADD = "insert into {{tables.users}} (email) values ($1) returning id"
COUNT = "select count(*) from {{tables.users}}"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
POOL = f'''select count(*) from pg_stat_activity
    where application_name like 'pgdbm% {WORKER} pool' and datname = current_database()'''


async def check(db):
    '''The schema is this test's own: empty at first, and the first id is 1.'''
    assert await db.fetch_value(COUNT) == 0
    assert await db.fetch_value(ADD, "a@example.org") == 1


async def fill(pool):
    '''Takes all connections that the pool may have, at once.'''
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(pool.get_max_size()):
            await asyncio.wait_for(stack.enter_async_context(pool.acquire()), 5)


def in_a_thread(work):
    # In the main thread, asyncio.run() takes the session's loop away from old versions of pytest-asyncio.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def pool_connections(url):
    async def count():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(POOL)
        finally:
            await connection.close()

    return in_a_thread(count())


def assert_only_parked(pool, url):
    '''No loop has a pool, and what is on the server waits for a loop.'''
    parked = re.fullmatch("<pytest-pgdbm pool, open in 0 loops; ([0-9]+) connections wait for a loop>", repr(pool))
    assert parked, repr(pool)
    deadline = time.monotonic() + 5
    while (left := pool_connections(url)) != int(parked[1]) and time.monotonic() < deadline:
        time.sleep(0.01)  # a server process ends a moment after its connection was closed
    assert left == int(parked[1])
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
from help import assert_only_parked, check

# A pool that outlives its loop would be seen by the next synchronous test.

@pytest.mark.asyncio
async def test_function(users_db):
    await check(users_db)

def test_only_parked_connections_after_a_function_loop(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)

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

def test_only_parked_connections_after_a_class_loop(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)

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

        def test_package_and_session_loops_have_theirs_until_they_end(pgdbm_pool, pgdbm_url):
            assert repr(pgdbm_pool).startswith("<pytest-pgdbm pool, open in 2 loops; ")
            assert pool_connections(pgdbm_url) <= 4  # so many were used at once
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


WITH_ANYIO = INI.replace(" -p no:anyio", "")

ANYIO = """
import pytest
from help import assert_only_parked, check

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

def test_only_parked_connections(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)
"""


@pytest.mark.parametrize("asyncio_plugin", ["no:asyncio", "asyncio"])
def test_anyio_with_and_without_pytest_asyncio(
    loops: Project, asyncio_plugin: str, assert_nothing_left: Callable[[], None]
) -> None:
    without = "[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider -p no:asyncio\n"
    loops.write("pytest.ini", without if asyncio_plugin == "no:asyncio" else WITH_ANYIO)
    arguments = [] if asyncio_plugin == "no:asyncio" else ["-o", "asyncio_mode=strict"]
    result = loops.run(*arguments, test=ANYIO)
    result.assert_outcomes(passed=3)
    assert_nothing_left()


def test_under_trio_the_error_says_that_asyncio_is_needed(loops: Project) -> None:
    loops.write("pytest.ini", WITH_ANYIO)
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
from help import ADD, COUNT, assert_only_parked, check, fill
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

def test_only_parked_connections_after_the_portals_loop(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)

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
    await pgdbm_db("users", fresh=True)
    task.cancel()
    assert turns > 1

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

def test_only_parked_connections_after_plain_loops(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)

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
    # Starlette's client says so of httpx, which it can be used with.
    result = loops.run_apart("-W", "ignore:Using `httpx` with:UserWarning", test=APPLICATIONS)
    result.assert_outcomes(passed=19)
    assert_nothing_left()


UVLOOP = """
import pytest
from help import assert_only_parked, check, fill

async def test_pool(users_db, pgdbm_db):
    import asyncio, uvloop
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    await check(users_db)
    assert await pgdbm_db("users") is users_db
    await fill(users_db.pool)

def test_only_parked_connections(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)

@pytest.mark.parametrize("time", range(2))
@pytest.mark.asyncio(loop_scope="session")
async def test_session(users_db, time):
    await check(users_db)
    await fill(users_db.pool)
"""

UVLOOP_POLICY = """
import pytest, uvloop

@pytest.fixture(scope="session")
def event_loop_policy():
    return uvloop.EventLoopPolicy()
"""

UVLOOP_FACTORY = """
import uvloop

def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}
"""


def test_uvloop(loops: Project, assert_nothing_left: Callable[[], None]) -> None:
    from pytest_asyncio import plugin

    hooked = hasattr(plugin, "PytestAsyncioSpecs") and "pytest_asyncio_loop_factories" in vars(
        plugin.PytestAsyncioSpecs
    )
    chosen = UVLOOP_FACTORY if hooked else UVLOOP_POLICY
    declared = (loops.path / "conftest.py").read_text()
    loops.write("conftest.py", declared + chosen)
    loops.run(test=UVLOOP).assert_outcomes(passed=4)
    assert_nothing_left()


POOL = """
import asyncio
import asyncpg
import pytest
from help import ADD, COUNT, assert_only_parked, check, fill
from pgdbm import AsyncDatabaseManager
from pgdbm.monitoring import MonitoredAsyncDatabaseManager

pytestmark = pytest.mark.asyncio(loop_scope="session")

async def test_is_a_pool(pgdbm_pool, users_db):
    assert isinstance(pgdbm_pool, asyncpg.Pool)
    assert isinstance(users_db, AsyncDatabaseManager)
    assert users_db.pool is users_db._pool is pgdbm_pool

async def test_every_way_to_get_a_connection(pgdbm_pool):
    async with pgdbm_pool.acquire() as connection:
        assert await connection.fetchval("select 1") == 1
    connection = await pgdbm_pool.acquire(timeout=5)
    try:
        assert pgdbm_pool.get_size() - pgdbm_pool.get_idle_size() == 1
        assert await connection.fetchval("select 2") == 2
    finally:
        await pgdbm_pool.release(connection)
    await pgdbm_pool.release(connection)
    connection = await asyncio.wait_for(pgdbm_pool.acquire(), 5)
    await connection.close()
    assert await pgdbm_pool.fetchval("select 3") == 3
    await fill(pgdbm_pool)

async def test_every_way_to_ask_a_query(pgdbm_pool, users_db):
    sql = users_db.prepare_query(ADD)
    assert await pgdbm_pool.execute(sql, "a@example.org") == "INSERT 0 1"
    await pgdbm_pool.executemany(sql, [("b@example.org",), ("c@example.org",)])
    assert (await pgdbm_pool.fetchrow(sql, "d@example.org"))["id"] == 4
    assert [row["id"] for row in await pgdbm_pool.fetchmany(sql, [("e@example.org",)])] == [5]
    copied = await pgdbm_pool.copy_records_to_table(
        "users", schema_name=users_db.schema, columns=["email"], records=[("f@example.org",)]
    )
    assert copied == "COPY 1"
    assert await users_db.copy_records_to_table("users", [("g@example.org",)], ["email"]) == 1
    assert len(await pgdbm_pool.fetch(users_db.prepare_query("select * from {{tables.users}}"))) == 7

async def test_transactions_and_cursors(users_db):
    with pytest.raises(ZeroDivisionError):
        async with users_db.transaction() as outer:
            await outer.execute(ADD, "a@example.org")
            async with outer.transaction() as inner:
                await inner.execute(ADD, "b@example.org")
            assert await outer.fetch_value(COUNT) == 2
            1 / 0
    assert await users_db.fetch_value(COUNT) == 0
    async with users_db.acquire() as connection, connection.transaction():
        seen = [row["n"] async for row in connection.cursor("select generate_series(1, 5) n", prefetch=2)]
    assert seen == [1, 2, 3, 4, 5]

async def test_two_connections_at_once(users_db):
    async with users_db.acquire() as one, users_db.acquire() as other:
        assert one.get_server_pid() != other.get_server_pid()

async def test_notifications(pgdbm_pool):
    heard = asyncio.Queue()
    listener = lambda connection, pid, channel, payload: heard.put_nowait(payload)
    async with pgdbm_pool.acquire() as connection:
        await connection.add_listener("news", listener)
        await pgdbm_pool.execute("select pg_notify('news', 'hello')")
        assert await asyncio.wait_for(heard.get(), 5) == "hello"
        await connection.remove_listener("news", listener)

async def test_a_manager_of_the_applications_own(pgdbm_pool, users_db):
    own = AsyncDatabaseManager(pool=pgdbm_pool, schema=users_db.schema)
    assert await own.fetch_value(ADD, "a@example.org") == 1
    await own.disconnect()
    watched = MonitoredAsyncDatabaseManager(pool=pgdbm_pool, schema=users_db.schema)
    assert await watched.fetch_one("select email from {{tables.users}}") == {"email": "a@example.org"}
    metrics = await watched.get_metrics()
    assert metrics.queries_failed == 0
    assert metrics.pool_max == pgdbm_pool.get_max_size() >= 2

async def test_statistics(users_db):
    await users_db.fetch_value("select 1")
    statistics = await users_db.get_pool_stats()
    assert statistics["status"] == "connected"
    assert statistics["max_size"] >= statistics["size"] >= 1
    assert statistics["used_size"] == 0
    assert statistics["database"]

async def test_an_application_closes_its_pool_at_shutdown(pgdbm_pool, pgdbm_url):
    async with pgdbm_pool as pool:
        assert pool is pgdbm_pool
        assert await pool.fetchval("select 1") == 1
    assert pgdbm_pool.get_size() == 0
    await asyncio.gather(pgdbm_pool.close(), pgdbm_pool.close())
    await asyncio.to_thread(assert_only_parked, pgdbm_pool, pgdbm_url)

async def test_the_next_test_goes_on(users_db, pgdbm_pool):
    await check(users_db)
    assert await pgdbm_pool is pgdbm_pool
    pgdbm_pool.terminate()
    assert await users_db.fetch_value(COUNT) == 1
    before = await pgdbm_pool.fetchval("select pg_backend_pid()")
    await pgdbm_pool.expire_connections()
    assert await pgdbm_pool.fetchval("select pg_backend_pid()") != before

async def test_closing_waits_for_a_connection_that_is_out(users_db, pgdbm_pool):
    async def work():
        async with users_db.transaction() as transaction:
            await started()
            await transaction.execute("select pg_sleep(0.1)")
            await transaction.execute(ADD, "a@example.org")

    future = asyncio.get_running_loop().create_future()
    async def started():
        future.set_result(None)

    task = asyncio.create_task(work())
    await future
    await pgdbm_pool.close()
    await task
    assert await users_db.fetch_value(COUNT) == 1

async def test_session_state_within_a_test_is_as_in_production(pgdbm_pool):
    await pgdbm_pool.execute("create temp table mine (n int); create temp sequence numbers; select nextval('numbers')")
    await asyncio.sleep(0)
    assert await pgdbm_pool.fetchval("select count(*) from mine") == 0
    assert await pgdbm_pool.fetchval("select currval('numbers')") == 1

async def test_session_state_is_gone_in_the_next(pgdbm_pool):
    assert await pgdbm_pool.fetchval("select to_regclass('pg_temp.mine')") is None
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await pgdbm_pool.execute("select lastval()")

@pytest.mark.parametrize("statement", 3 * ["prepare mine as select 1", "deallocate all", "discard all"])
async def test_statements_of_one_test_are_no_other_ones(pgdbm_pool, statement):
    async with pgdbm_pool.acquire() as connection:
        assert await connection.fetchval("select count(*) from pg_prepared_statements where from_sql") == 0
        assert await connection.fetchval("select 7") == 7
        await connection.execute(statement)

async def test_the_pool_cannot_be_sent_elsewhere(pgdbm_pool):
    with pytest.raises(asyncpg.InterfaceError, match="the pool of pytest-pgdbm cannot be sent to another server"):
        pgdbm_pool.set_connect_args("postgresql://elsewhere")
    assert repr(pgdbm_pool) == "<pytest-pgdbm pool, open in 1 loops; 0 connections wait for a loop>"
    assert not pgdbm_pool.is_closing()

@pytest.mark.asyncio(loop_scope="function")
async def test_connections_die_between_tests(pgdbm_url):
    connection = await asyncpg.connect(pgdbm_url)
    await connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where application_name like 'pgdbm%pool' and datname = current_database()")
    await connection.close()

async def test_the_next_test_gets_a_living_one(pgdbm_pool, users_db):
    await check(users_db)
    await fill(pgdbm_pool)
"""


def test_the_pool_is_one_for_its_users(loops: Project, assert_nothing_left: Callable[[], None]) -> None:
    result = loops.run(test=POOL)
    result.assert_outcomes(passed=25)
    assert_nothing_left()


SUCCESSIVE = """
import asyncio
import pytest
from help import WORKER, assert_only_parked, check, fill, in_a_thread

pids = []

@pytest.mark.parametrize("time", range(6))
async def test_one_loop_after_another(users_db, orders_db, pgdbm_pool, time):
    await check(users_db)
    async with pgdbm_pool.acquire() as one, orders_db.acquire() as other:
        assert await one.fetchval("select to_regclass('pg_temp.mine')") is None
        assert await one.fetchval("show work_mem") != "99MB"
        assert await one.fetchval("select pg_try_advisory_lock(hashtext($1))", WORKER)
        await one.execute("create temp table mine (n int); set work_mem = '99MB'; listen news")
        pids.append({one.get_server_pid(), other.get_server_pid()})

def test_the_same_server_processes_served_all(pgdbm_pool, pgdbm_url):
    assert len(pids) >= 3
    assert pids[2:] == [pids[1]] * (len(pids) - 2)  # the very first connection is one by which pgdbm looks at the path
    assert_only_parked(pgdbm_pool, pgdbm_url)

@pytest.mark.parametrize("time", range(2))
def test_in_a_thread(users_db, pgdbm_pool, time):
    async def work():
        await check(users_db)
        async with pgdbm_pool.acquire() as one, pgdbm_pool.acquire() as other:
            return {one.get_server_pid(), other.get_server_pid()}

    assert in_a_thread(work()) == pids[-1]

async def test_new_sessions_for_who_asks(users_db, pgdbm_pool, pgdbm_url):
    await pgdbm_pool.expire_connections()
    assert await pgdbm_pool.fetchval("select pg_backend_pid()") not in pids[-1]
    await check(users_db)

async def test_terminated_connections_do_not_come_back(users_db, pgdbm_pool):
    before = await pgdbm_pool.fetchval("select pg_backend_pid()")
    pgdbm_pool.terminate()
    assert await pgdbm_pool.fetchval("select pg_backend_pid()") != before
    await fill(pgdbm_pool)

def test_no_more_wait_than_were_open(pgdbm_pool, pgdbm_url):
    assert_only_parked(pgdbm_pool, pgdbm_url)
    assert f"; {pgdbm_pool.get_max_size()} connections wait" in repr(pgdbm_pool)
"""


@pytest.mark.parametrize("arguments", [(), ("-n2", "--dist=loadfile"), ("-n2", "--dist=each")])
def test_sessions_outlive_their_loop_clean(
    loops: Project, assert_nothing_left: Callable[[], None], arguments: tuple[str, ...]
) -> None:
    result = loops.run_apart(*arguments, test=SUCCESSIVE)
    result.assert_outcomes(passed=12 * (2 if "--dist=each" in arguments else 1))
    assert_nothing_left()


TIGHT = """
import asyncio
import pytest
from help import check, fill, in_a_thread

@pytest.mark.parametrize("time", range(4))
async def test_one_loop_after_another(users_db, time):
    await check(users_db)
    await fill(users_db.pool)

@pytest.mark.parametrize("time", range(2))
def test_in_a_thread(users_db, time):
    in_a_thread(fill(users_db.pool))

@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("time", range(2))
async def test_in_a_loop_that_stays(users_db, pgdbm_pool, time):
    await check(users_db)
    await fill(pgdbm_pool)
    assert pgdbm_pool.get_size() == pgdbm_pool.get_max_size() == 3
"""


def test_sessions_that_wait_for_a_loop_are_of_the_workers_share(
    loops: Project, query: Query, assert_nothing_left: Callable[[], None]
) -> None:
    name = query("select current_database()")[0][0]
    query(f'alter database "{name}" connection limit 10')  # of each worker: one builds, one ends others, and three
    result = loops.run_apart("-n2", "--dist=each", test=TIGHT)
    result.assert_outcomes(passed=16)
    query(f'alter database "{name}" connection limit -1')
    assert_nothing_left()


PLAIN = """
import asyncio
import asyncpg
import pytest
from help import check, fill, pool_connections

pids = set()

def test_before(pgdbm_pool, pgdbm_url):
    assert repr(pgdbm_pool) == (
        "<pytest-pgdbm pool, open in 0 loops; connections end with their loop: asyncpg 0.99.0 is not one that this was"
        " tested with>"
    )

@pytest.mark.parametrize("time", range(3))
async def test_one_loop_after_another(users_db, pgdbm_pool, time):
    await check(users_db)
    await fill(pgdbm_pool)
    pids.add(await users_db.fetch_value("select pg_backend_pid()"))

def test_each_had_a_session_of_its_own(pgdbm_url):
    assert len(pids) == 3
    while pool_connections(pgdbm_url):
        pass
"""


def test_where_sessions_cannot_outlive_their_loop_all_else_is_the_same(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    declared = (loops.path / "conftest.py").read_text()
    loops.write("conftest.py", "import asyncpg\nasyncpg.__version__ = '0.99.0'\n" + declared)
    loops.run_apart("-rA", test=PLAIN).assert_outcomes(passed=5)
    assert_nothing_left()


SMALLEST_SIZE = """
import pytest
from help import check

@pytest.fixture(scope="session")
def pgdbm_pool_options():
    return {"min_connections": 3, "max_connections": 4, "init_commands": ["set work_mem = '77MB'"]}

seen = []

@pytest.mark.parametrize("time", range(4))
async def test_smallest_size(users_db, pgdbm_pool, time):
    await check(users_db)
    assert (pgdbm_pool.get_size(), pgdbm_pool.get_idle_size()) == (3, 3)
    assert (pgdbm_pool.get_min_size(), pgdbm_pool.get_max_size()) == (3, 4)
    async with pgdbm_pool.acquire() as one, pgdbm_pool.acquire() as two, pgdbm_pool.acquire() as three:
        seen.append({each.get_server_pid() for each in (one, two, three)})
    assert time < 2 or seen[-1] == seen[-2]
"""


def test_a_pool_with_a_smallest_size_finds_its_connections_again(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    loops.run(test=SMALLEST_SIZE).assert_outcomes(passed=4)
    assert_nothing_left()


def test_a_smallest_size_above_the_largest_is_told(loops: Project) -> None:
    result = loops.run(
        test="""
        import pytest

        @pytest.fixture(scope="session")
        def pgdbm_pool_options():
            return {"min_connections": 5, "max_connections": 4}

        async def test_options(users_db):
            pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["pgdbm_pool_options: min_connections is 5; give a number from 0 to 4, which is max_connections"]
    )


LEAKS = """
import asyncio
import pytest
from help import ADD, check, fill, in_a_thread

session = pytest.mark.asyncio(loop_scope="session")
tasks = []

async def test_function_loop(users_db):
    connection = await users_db.pool.acquire()
    await connection.execute(users_db.prepare_query(ADD), "a@example.org")

async def test_after_function_loop(users_db):
    await check(users_db)
    await fill(users_db.pool)

async def test_task_of_a_function_loop(users_db):
    async def work():
        async with users_db.acquire() as connection:
            task = asyncio.create_task(asyncio.sleep(3600))
            started.set()
            await connection.fetchval("select pg_sleep(3600)")

    started = asyncio.Event()
    task = asyncio.create_task(work())
    await started.wait()

@session
async def test_session_loop(users_db):
    context = users_db.acquire()
    connection = await context.__aenter__()
    users_db.context = context
    tasks.append(context)
    await connection.execute("select 1 as kept_in_session_loop")

@session
async def test_after_session_loop(users_db):
    await check(users_db)
    await fill(users_db.pool)

@session
async def test_transaction(users_db):
    async def work():
        async with users_db.transaction() as transaction:
            await transaction.execute(ADD, "a@example.org")
            started.set()
            await asyncio.sleep(3600)

    started = asyncio.Event()
    tasks.append(asyncio.create_task(work()))
    await started.wait()

@session
async def test_after_transaction(users_db):
    await check(users_db)
    await fill(users_db.pool)

@session
async def test_query(users_db):
    async def work():
        started.set()
        await users_db.fetch_value("select pg_sleep(3600)")

    started = asyncio.Event()
    tasks.append(asyncio.create_task(work()))
    await started.wait()
    await asyncio.sleep(0.1)

@session
async def test_after_query(users_db):
    await check(users_db)
    with pytest.raises(Exception, match="connection"):
        await tasks[-1]
    await fill(users_db.pool)

def test_in_a_thread(users_db):
    async def work():
        connection = await users_db.pool.acquire()
        await connection.execute("select 1 as kept_in_thread")

    in_a_thread(work())

def test_before_anything_is_leased(pgdbm_pool):
    async def work():
        connection = await pgdbm_pool.acquire()
        await connection.execute("select 1 as kept_without_lease")

    in_a_thread(work())

@session
async def test_all_is_well(users_db):
    await check(users_db)
    await fill(users_db.pool)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
"""


def test_a_connection_that_is_not_given_back_is_named_and_cut_off(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    began = time.monotonic()
    result = loops.run("-W", "always::pytest_pgdbm.PgdbmLeakWarning", test=LEAKS)
    assert time.monotonic() - began < 20
    result.assert_outcomes(passed=12, warnings=6)
    end = "*last query '{}*'). It was cut off; release it, or use 'async with'"
    start = (
        "*PgdbmLeakWarning: test_it.py::{} ended without giving back a connection that it took at *{} (server process *"
    )
    result.stdout.fnmatch_lines(
        [
            start.format("test_function_loop", "test_it.py:10") + ", idle, " + end.format("insert into "),
            start.format("test_session_loop", "test_it.py:31") + ", idle, " + end.format("select 1 as kept_in_session"),
            start.format("test_transaction", "test_it.py:44") + ", idle in transaction, " + end.format("insert into "),
            start.format("test_query", "test_it.py:62") + ", active, " + end.format("select pg_sleep"),
            start.format("test_in_a_thread", "test_it.py:78") + ", idle, " + end.format("select 1 as kept_in_thread"),
            "*PgdbmLeakWarning: test_it.py::test_before_anything_is_leased ended *:85 (server process *, "
            + end.format("select 1 as kept_without_lease"),
        ]
    )
    assert_nothing_left()


def test_a_task_that_outlives_its_test_is_told_whose_its_manager_was(loops: Project) -> None:
    result = loops.run(
        "-rP",
        test="""
        import asyncio
        import pytest
        from help import ADD, check

        pytestmark = pytest.mark.asyncio(loop_scope="session")
        left = []

        async def work(db, go):
            await go.wait()
            await db.execute(ADD, "late@example.org")

        async def test_first(users_db):
            go = asyncio.Event()
            left.extend([go, asyncio.create_task(work(users_db, go))])

        async def test_second(users_db):
            go, task = left
            go.set()
            with pytest.raises(Exception) as caught:
                await task
            await check(users_db)
            print(f"{type(caught.value).__name__}: {caught.value}")
        """,
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "LeaseEnded: this manager belonged to test_it.py::test_first, which has ended, and its schema with it;"
            " something that outlives the test (a task, a thread, a module-level variable) still uses it"
        ]
    )


CAPLOG = """
import asyncio
import logging

import asyncpg
import pytest
from help import check
from pgdbm import AsyncDatabaseManager

OTHERS = {"asyncio"}  # what pytest-asyncio's own loop logs in its set-up

def plugins_own(caplog, when):
    return [record for record in caplog.get_records(when) if record.name not in OTHERS]

def test_the_first_of_all(caplog, pgdbm_db):
    caplog.set_level(logging.DEBUG)
    users, orders = pgdbm_db("users", "orders").get()
    assert plugins_own(caplog, "setup") == []
    assert caplog.records == []

async def test_the_pool_is_opened(caplog, users_db):
    caplog.set_level(logging.DEBUG)
    await check(users_db)
    assert plugins_own(caplog, "setup") == []
    assert caplog.records == []

async def test_the_factory_is_awaited(caplog, pgdbm_db):
    caplog.set_level(logging.DEBUG)
    users, orders = await asyncio.gather(pgdbm_db("users"), pgdbm_db("orders"))
    await check(users)
    assert caplog.records == []

async def test_what_the_test_itself_does_is_logged(caplog, users_db, pgdbm_url):
    caplog.set_level(logging.DEBUG)
    from pgdbm import DatabaseConfig
    pool = await AsyncDatabaseManager.create_shared_pool(
        DatabaseConfig(connection_string=pgdbm_url, min_connections=1, max_connections=2))
    await pool.close()
    assert "Shared connection pool created successfully" in caplog.messages
    await AsyncDatabaseManager(pool=users_db.pool, schema=users_db.schema).disconnect()
    assert "Using external pool - skipping disconnect" in caplog.messages

async def test_a_listener_that_logs_is_heard(caplog, users_db):
    caplog.set_level(logging.DEBUG)
    heard = asyncio.Event()

    def listener(*news):
        logging.getLogger("pgdbm.core").info("news")
        heard.set()

    async with users_db.acquire() as connection:
        await connection.add_listener("news", listener)
        await connection.execute("notify news")
        await asyncio.wait_for(heard.wait(), 5)
        await connection.remove_listener("news", listener)
    assert caplog.messages == ["news"]

async def test_a_leak(caplog, users_db):
    caplog.set_level(logging.DEBUG)
    await users_db.pool.acquire()

def test_after_it(caplog):
    assert plugins_own(caplog, "setup") == []
"""


@pytest.mark.parametrize("level", [(), ("-o", "log_level=DEBUG")])
def test_what_the_plugin_does_reaches_no_caplog(loops: Project, level: tuple[str, ...]) -> None:
    result = loops.run("-W", "always::pytest_pgdbm.PgdbmLeakWarning", *level, "-rA", test=CAPLOG)
    result.assert_outcomes(passed=7, warnings=1)


SLOW = """
create table {{tables.users}} (id serial primary key, email text not null unique);
select pg_sleep(3600);
"""


def test_cancelled_in_the_middle_of_a_migration_nothing_is_left(
    loops: Project, assert_nothing_left: Callable[[], None]
) -> None:
    loops.write("migrations/slow/001_slow.sql", SLOW)
    result = loops.run(
        test="""
        import asyncio
        import asyncpg
        import pytest
        from help import check

        SCHEMAS = "select nspname from pg_namespace where nspname like 'pgdbm%slow%'"

        async def test_timeout(pgdbm_db, pgdbm_url):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pgdbm_db("slow"), 0.3)
            connection = await asyncpg.connect(pgdbm_url)
            assert await connection.fetch(SCHEMAS) == []
            await connection.close()
            await check(await pgdbm_db("users"))

        async def test_cancelled_task(pgdbm_db):
            task = asyncio.create_task(wait(pgdbm_db("slow")))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await check(await pgdbm_db("users"))

        async def test_task_that_nobody_waits_for(pgdbm_db):
            task = asyncio.create_task(wait(pgdbm_db("slow")))
            await asyncio.sleep(0.1)

        async def wait(lease):
            await lease

        async def test_next(pgdbm_db):
            await check(await pgdbm_db("users"))
        """
    )
    result.assert_outcomes(passed=4)
    assert_nothing_left()


INTERRUPTED = {
    "awaited": """
        async def test_slow(pgdbm_db):
            await pgdbm_db("slow")
        """,
    "shielded": """
        import asyncio

        async def ask(pgdbm_db):
            await pgdbm_db("slow")

        async def test_slow(pgdbm_db):
            await asyncio.shield(ask(pgdbm_db))
        """,
    "blocking": """
        def test_slow(pgdbm_db):
            pgdbm_db("slow").get()
        """,
    "fixture": """
        from pytest_pgdbm import pgdbm_db

        slow_db = pgdbm_db("slow")

        async def test_slow(slow_db):
            pass
        """,
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_interrupted_in_the_middle_of_a_migration_nothing_is_left(
    loops: Project, query: Query, assert_nothing_left: Callable[[], None], how: str
) -> None:
    loops.write("migrations/slow/001_slow.sql", SLOW)
    loops.write("test_it.py", INTERRUPTED[how])
    command = [sys.executable, "-m", "pytest", f"--pgdbm-url={loops.url}"]
    with subprocess.Popen(command, cwd=loops.path, stdout=subprocess.PIPE, text=True) as run:
        try:
            wait_until(
                lambda: bool(
                    query("select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'")
                )
            )
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=20)
        finally:
            run.kill()
    assert run.returncode == 2
    assert "KeyboardInterrupt" in output
    assert_nothing_left()
