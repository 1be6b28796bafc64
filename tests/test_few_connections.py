"""Runs on servers that let in few, each on a server of the test's own: no more is taken than the run's share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import Project
from databases import execute
from schemas.test_sweep import leave

from benchmarks import connections, migrations
from benchmarks.sampling import Sampler
from benchmarks.stress import servers
from benchmarks.stress.connections import stressed
from pytest_pgdbm.ground.names import new_run

IMPATIENT = """
from pytest_pgdbm import pgdbm_db
from pytest_pgdbm.connections import crowd

crowd.SECONDS_TO_WAIT = crowd.SECONDS_FOR_A_TURN = 1
crowd.SECONDS_TO_TELL = 0.3
users_db = pgdbm_db("users")
"""

TELLS_OF_WAITS = """
import pathlib
from pytest_pgdbm import pgdbm_db
from pytest_pgdbm.connections import crowd

crowd.SECONDS_TO_TELL = 0.3
users_db = pgdbm_db("users")
begin = crowd.Crowd.__init__

def telling(self, endpoint, *, ask=crowd.nobody, say=str):
    def said(told):
        say(told)
        pathlib.Path("waits").touch()

    begin(self, endpoint, ask=ask, say=str if say is str else said)  # that of who tells nobody is not waited for

crowd.Crowd.__init__ = telling
"""

Few = Callable[[int], Sampler]


@pytest.fixture
def few(project: Project) -> Iterator[Few]:
    """Has the project run on a server that lets in so many; returns what watches that."""
    with ExitStack() as stack:

        def begin(usable: int) -> Sampler:
            # Who watches takes one more.
            server = stack.enter_context(servers.started(max_connections=usable + 20))
            execute(server.boss, f"alter role {servers.ROLE} connection limit {usable}")
            project.url = server.url
            return Sampler(server.boss, servers.COUNT)

        yield begin


def test_500_tests_on_eight_workers_need_no_more_than_forty_connections() -> None:
    outcome = stressed(500, 8, 40)
    assert outcome.good, outcome


def test_workers_take_turns_where_there_are_too_few_for_all() -> None:
    outcome = stressed(60, 4, 10)
    assert outcome.good, outcome


UVLOOP = """
import uvloop

def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}
"""

LOOPS = """
import asyncio
import threading
import pytest

async def two(db):
    async with db.acquire() as one, db.acquire() as other:
        assert await one.fetchval("select 1") + await other.fetchval("select 2") == 3

in_session = pytest.mark.asyncio(loop_scope="session")

@in_session
@pytest.mark.parametrize("time", range(2))
async def test_in_the_loop_of_the_session(users_db, time):
    await two(users_db)

@pytest.mark.parametrize("time", range(2))
async def test_in_a_loop_of_its_own(users_db, time):
    await two(users_db)

@in_session
async def test_in_a_thread_while_the_loop_of_the_session_is_blocked(users_db):
    await two(users_db)
    thread = threading.Thread(target=lambda: asyncio.run(two(users_db)))
    thread.start()
    thread.join()
    await two(users_db)

@in_session
async def test_in_a_thread_while_the_loop_of_the_session_runs(users_db):
    await two(users_db)
    await asyncio.to_thread(lambda: asyncio.run(two(users_db)))
    await two(users_db)

async def test_more_tasks_than_connections(users_db):
    await asyncio.gather(*(users_db.fetch_value("select pg_sleep(0.01)") for _ in range(20)))
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_event_loops_of_a_worker_share_its_two_connections(project: Project, few: Few, kind: str) -> None:
    if kind == "uvloop":
        declared = (project.path / "conftest.py").read_text()
        project.write("conftest.py", declared + UVLOOP)
    with few(3) as sampler:
        project.run_apart(test=LOOPS).assert_outcomes(passed=7)
    assert sampler.peak == 3


HOLDING = """
import pytest_asyncio
import pytest

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def held(pgdbm_pool):
    async with pgdbm_pool.acquire() as connection:
        yield connection

async def test_needs_two_more(users_db, held):
    await users_db.fetch_value("select 1")

async def test_the_next_one_does_not_wait_as_long(users_db, held):
    await users_db.fetch_value("select 1")
"""


def test_a_loop_that_gets_no_connection_since_another_holds_them_is_told_who(project: Project, few: Few) -> None:
    project.write("conftest.py", IMPATIENT)
    with few(3) as sampler:
        result = project.run_apart(test=HOLDING)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E *waited 1 seconds for a connection to *: this worker's share is in use by other event loops",
            'E * CONNECTION LIMIT of role "app": 3',
            "E * needed: 3 for 1 worker, each one to build and two for a test",
            "E * held: *1 x 'pgdbm * main pool' (app in stress_test)*",
            'E * to mend it: ALTER ROLE "app" CONNECTION LIMIT 6 or more, or fewer other clients',
            "*= pgdbm =*",
            "waited * seconds for a connection to *: this worker's share is in use by other event loops",
        ]
    )
    assert sampler.peak <= 3


THREE = """
import asyncio

async def test_three_at_once(users_db):
    async with users_db.acquire(), users_db.acquire(), users_db.acquire():
        pass

async def test_two_at_once(users_db):
    async with users_db.acquire(), users_db.acquire():
        pass
"""


def test_code_that_takes_three_at_once_where_there_are_two_does_not_stand_still(project: Project, few: Few) -> None:
    project.write("conftest.py", IMPATIENT)
    with few(3):
        result = project.run_apart(test=THREE)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["E *waited 1 seconds for a connection to *: this worker's share is in use"])


# ------------------------------------------------------------------ what comes and goes

LEAKING = """
import pytest

left = []

@pytest.mark.asyncio(loop_scope="session")
async def test_leaves_both(users_db):
    for number in range(2):
        left.append(users_db.acquire())
        connection = await left[-1].__aenter__()
        await connection.execute(f"select {number}")

@pytest.mark.asyncio(loop_scope="session")
async def test_has_both(users_db):
    async with users_db.acquire(), users_db.acquire():
        pass
"""


@pytest.mark.parametrize("isolation", ["schema", "database"])
def test_what_a_test_has_left_is_ended_within_the_share(project: Project, few: Few, isolation: str) -> None:
    fewest = {"schema": 3, "database": 5}[isolation]
    with few(fewest) as sampler:
        result = project.run_apart("-o", f"pgdbm_isolation={isolation}", "-W", "default", test=LEAKING)
    result.assert_outcomes(passed=2, warnings=1)
    for number in range(2):
        result.stdout.fnmatch_lines([f"*test_leaves_both ended without*, idle, last query 'select {number}')*"])
    assert 0 < sampler.peak <= fewest


def test_without_a_connection_to_spare_it_is_swept_at_the_end(project: Project, few: Few) -> None:
    few(3)

    async def ask(work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
        connection = await asyncpg.connect(project.url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    asyncio.run(ask(lambda connection: leave(connection, new_run(), "users", "orders")))
    project.run_apart(test=BY_OTHERS).assert_outcomes(passed=1)
    schemas = "select nspname from pg_namespace where nspname !~ '^(pg_|public$|information_schema$)'"
    assert asyncio.run(ask(lambda connection: connection.fetch(schemas))) == []


def test_isolation_database_is_refused_where_there_is_no_room_for_its_connections(project: Project, few: Few) -> None:
    with few(9) as sampler:
        result = project.run_apart("-o", "pgdbm_isolation=database", "-n", "2", test=BY_OTHERS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "isolation 'database' needs 5 connections of each worker, and 127.0.0.1:* has 9 for 2 workers",
            '  CONNECTION LIMIT of role "app": 9',
            '  to mend it: ALTER ROLE "app" CONNECTION LIMIT 10 or more, or fewer workers: -n 1 fits',
        ]
    )
    assert 0 < sampler.peak <= 2


# ------------------------------------------------------------------ other clients


class Others:
    """Other clients of a server: they have connections, all but so many."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._all: list[asyncpg.Connection] = []

    async def take(self, but: int = 0) -> None:
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await self._take_all()
        await self.give(but)

    async def _take_all(self) -> None:
        while True:
            self._all.append(await asyncpg.connect(self._url, server_settings={"application_name": "others"}))

    async def give(self, number: int | None = None) -> None:
        for _ in range(len(self._all) if number is None else number):
            await self._all.pop().close()


BY_OTHERS = """
async def test_it(users_db):
    await users_db.fetch_value("select 1")
"""


def run_beside_others(project: Project, few: Few, *, but: int) -> pytest.RunResult:
    """An impatient run on a server of eight connections, of which others have all but so many."""
    project.write("conftest.py", IMPATIENT)
    few(8)
    others = Others(project.url or "")

    async def go() -> pytest.RunResult:
        await others.take(but=but)
        try:
            return await asyncio.to_thread(project.run_apart, test=BY_OTHERS)
        finally:
            await others.give()

    return asyncio.run(go())


def test_where_others_have_all_connections_the_run_says_so_after_a_while(project: Project, few: Few) -> None:
    result = run_beside_others(project, few, but=0)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            '*url: * has no connection left: too many connections for role "app" (for 1 seconds)',
            "*to mend it: raise the limit (max_connections, or CONNECTION LIMIT of the role or database), end other"
            " clients, or use fewer workers (-n)",
        ]
    )


def test_where_others_have_all_but_one_it_is_told_who(project: Project, few: Few) -> None:
    result = run_beside_others(project, few, but=1)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '*waited 1 seconds for a connection to *: the server says: too many connections for role "app"',
            '* CONNECTION LIMIT of role "app": 8',
            "* needed: 3 for 1 worker, each one to build and two for a test",
            "* held: 7 x 'others' (app in stress_test), 1 x 'pgdbm * main admin' (app in stress_test)*",
            '* to mend it: ALTER ROLE "app" CONNECTION LIMIT 11 or more, or fewer other clients',
        ]
    )


def test_others_that_leave_in_time_are_waited_for(project: Project, few: Few) -> None:
    few(8)
    others = Others(project.url or "")

    async def go() -> pytest.RunResult:
        await others.take(but=1)
        running = asyncio.ensure_future(asyncio.to_thread(project.run_apart, test=BY_OTHERS))
        while not (project.path / "waits").exists():
            await asyncio.sleep(0.02)
        await others.give()
        return await running

    project.write("conftest.py", TELLS_OF_WAITS)
    result = asyncio.run(go())
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= pgdbm =*", "waited * seconds for a connection to *: the server says: too many *"])


def test_the_benchmark_counts_what_its_runs_take_and_leave(tmp_path: Path) -> None:
    counts = connections.measure(migrations.write(tmp_path, 3), tests=10)
    assert [(each.loop, each.left) for each in counts] == [("session", 0), ("function", 0)]
    assert all(0 < each.peak <= each.budget for each in counts)
