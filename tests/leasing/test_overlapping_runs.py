"""Runs whose sets come back by messages that nobody waits for: quick tests, threads, interruptions."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg
import pytest
from conftest import Project

Query = Callable[[str], list[asyncpg.Record]]

LEFT = "select nspname from pg_namespace where nspname ~ '^pgdbm_'"

# One that is being dropped, or was left so, has its mark in its comment alone. Other workers have some on this server.
LEFT_DATABASES = """
select d.datname
from pg_database d,
    (select (1 << 30) + oid::bigint % (1 << 30) as mark from pg_database where datname = current_database()) home
where d.datname ~ '^pgdbm_' and (
    d.datconnlimit = home.mark
    or d.datconnlimit = -2 and shobj_description(d.oid, 'pg_database') like format('%%, mark %s, %%', home.mark)
)
"""

QUICK_TESTS = """
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="{scope}")

@pytest.mark.parametrize("number", range(300))
async def test_it(pgdbm_db, number):
    for service in {services}:
        db = await pgdbm_db(service)
        async with db.acquire() as connection:
            count = db.prepare_query("select count(*) from {{{{tables.things}}}}")
            assert await connection.fetchval(count) == 0
            add = db.prepare_query("insert into {{{{tables.things}}}} (name) values ('x') returning id")
            assert await connection.fetchval(add) == 1
"""


def with_services(project: Project, *names: str) -> None:
    for name in names:
        project.write(f"migrations/{name}/001.sql", "create table {{tables.things}} (id serial primary key, name text)")


@pytest.mark.parametrize("scope", ["function", "session"])
@pytest.mark.parametrize("services", [("one",), ("one", "two")], ids=["one service", "two services"])
def test_tests_that_take_no_time_all_begin_with_nothing(
    project: Project, query: Query, scope: str, services: tuple[str, ...]
) -> None:
    with_services(project, *services)
    project.run(test=QUICK_TESTS.format(scope=scope, services=services)).assert_outcomes(passed=300)
    assert query(LEFT) == []


def test_a_thread_of_a_tests_own_leases_meanwhile(project: Project, query: Query) -> None:
    with_services(project, "one", "two", "three")
    project.run(
        test="""
        import asyncio, threading
        import pytest

        ADD = "insert into {{tables.things}} (name) values ('x') returning id"

        @pytest.mark.parametrize("number", range(60))
        def test_it(pgdbm_db, number):
            ids, errors = [], []

            def work(service):
                try:
                    db = pgdbm_db(service).get()
                    ids.append(asyncio.run(db.fetch_value(ADD)))
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=work, args=[name]) for name in ("one", "two", "three")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (ids, errors) == ([1, 1, 1], [])
        """
    ).assert_outcomes(passed=60)
    assert query(LEFT) == []


def test_threads_of_one_test_that_ask_at_once_have_the_same_schema(project: Project, query: Query) -> None:
    with_services(project, "one")
    project.write(
        "conftest.py",
        """
        import sys
        import pytest

        @pytest.fixture(autouse=True, scope="session")
        def one_after_the_other():
            before = sys.getswitchinterval()
            sys.setswitchinterval(0.00001)
            yield
            sys.setswitchinterval(before)
        """,
    )
    project.run_apart(
        test="""
        import threading
        import pytest

        @pytest.mark.parametrize("number", range(100))
        def test_it(pgdbm_db, number):
            schemas, together = [], threading.Barrier(4)

            def work():
                together.wait()
                schemas.append(pgdbm_db("one").get().schema)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (len(schemas), len(set(schemas))) == (4, 1)
        """
    ).assert_outcomes(passed=100)
    assert query(LEFT) == []


# What pytest-timeout does with its method "signal": an exception out of a signal's handler, wherever the thread is.
INTERRUPTS = """
import signal
import pytest
from pytest_pgdbm import pgdbm_db
from pytest_pgdbm.connections.line import Line
from pytest_pgdbm.leasing.leases import _Together
from pytest_pgdbm.leasing.stock import Stock
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.recycling.overlapped import Overlapped

users_db = pgdbm_db("users")
orders_db = pgdbm_db("orders")
things_db = pgdbm_db("things")

class Interrupting:
    def __init__(self, owner, name, before):
        self.name, self.before, self.calls, self.at, self.interrupted = name, before, 0, None, []
        self.original = getattr(owner, name)
        setattr(owner, name, lambda *args: self.call(*args))

    def call(self, *args):
        self.calls += 1
        if self.before:
            self.interrupt()
        result = self.original(*args)
        if not self.before:
            self.interrupt()
        return result

    def interrupt(self):
        if self.at is not None and self.calls >= self.at and not self.interrupted:
            self.interrupted.append(self.calls)
            signal.raise_signal(signal.SIGUSR1)

class Done(Interrupting):
    def __init__(self, before):
        super().__init__(Overlapped, "begin", before)

    def call(self, overlapped, recyclable, over, done, *args):
        self.calls += 1

        def called(*came):
            if self.before:
                self.interrupt()
            done(*came)
            self.interrupt()

        return self.original(overlapped, recyclable, over, called, *args)

point = {place}

class TimeIsOver(Exception):
    pass

def over(*_):
    raise TimeIsOver

@pytest.fixture(autouse=True, scope="session")
def handler():
    before = signal.signal(signal.SIGUSR1, over)
    yield
    signal.signal(signal.SIGUSR1, before)
    assert len(point.interrupted) == 1

@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    if item.name == "test_it[20]":
        point.at = point.calls + 1
    return (yield)
"""
INTERRUPTED = """
import pytest

@pytest.mark.parametrize("number", range(80))
async def test_it(users_db, things_db, number):
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    assert await things_db.fetch_value("insert into {{tables.things}} (name) values ('x') returning id") == 1
"""


PLACES = [
    "Interrupting(Line, 'ask', True)",
    "Interrupting(Line, 'ask', False)",
    "Interrupting(Line, 'listen', False)",
    "Interrupting(Stock, 'begin', True)",
    "Interrupting(Stock, 'begin', False)",
    "Interrupting(Home, 'begin', False)",
    "Interrupting(_Together, 'begin', False)",
    "Interrupting(Home, 'go_on', True)",
    "Done(True)",
    "Done(False)",
]
WITH_DATABASES = [*PLACES[:3], *PLACES[-2:]]


@pytest.mark.parametrize(
    ("place", "isolation"),
    [*((place, "schema") for place in PLACES), *((place, "database") for place in WITH_DATABASES)],
)
def test_an_interruption_costs_one_test_and_no_other_sees_anything_of_it(
    project: Project, query: Query, place: str, isolation: str
) -> None:
    with_services(project, "things")
    project.write("conftest.py", INTERRUPTS.format(place=place))
    result = project.run_apart(f"--pgdbm-isolation={isolation}", test=INTERRUPTED)
    outcomes = result.parseoutcomes()
    assert outcomes.pop("passed") + outcomes.get("failed", 0) >= 79
    assert sum(outcomes.values()) == 1
    result.stdout.re_match_lines([r"(ERROR|FAILED) test_it.py::test_it\[\d+\] - conftest.TimeIsOver"])
    project.write("conftest.py", "from pytest_pgdbm import pgdbm_db\nusers_db = pgdbm_db('users')\n")
    again = "async def test_works(users_db):\n    assert users_db.schema\n"
    project.run(test=again).assert_outcomes(passed=1)  # which sweeps what was lost
    assert query(LEFT) == []
    assert query(LEFT_DATABASES) == []
