"""Runs against a URL that are killed, and what the next run finds and leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import asyncpg
import pytest
from conftest import Project
from databases import drops_held
from scenes import eventually

HANGS = """
import pathlib, signal

async def test_hangs(users_db, pgdbm_database):
    db = await pgdbm_database("users")
    pathlib.Path(__file__).with_name("hangs").touch()
    signal.pause()
"""
WORKS = """
async def test_works(users_db):
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
"""
LEFT = "select nspname as name from pg_namespace where nspname like 'pgdbm%'"
LEFT_DATABASES = "select datname as name from pg_database where datname ~ $1"

Query = Callable[..., list[asyncpg.Record]]


def start(project: Project, *args: str) -> subprocess.Popen[str]:
    """A run that hangs in its first test."""
    project.write("test_it.py", HANGS)
    command = [sys.executable, "-m", "pytest", f"--pgdbm-url={project.url}", *args]
    process = subprocess.Popen(command, cwd=project.path, stdout=subprocess.DEVNULL, start_new_session=True)
    eventually((project.path / "hangs").exists)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def left(query: Query) -> set[str]:
    return {row["name"] for row in query(LEFT)}


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist=each")], ids=["alone", "xdist"])
def test_the_next_run_sweeps_what_a_killed_one_has_left(
    project: Project, query: Query, workers: tuple[str, ...]
) -> None:
    process = start(project, *workers)
    dead = left(query)
    runs = {name.split("_")[1] for name in dead}
    assert len(runs) == 1
    databases = f"^pgdbm_{runs.pop()}_"
    assert query(LEFT_DATABASES, databases)
    kill(process)
    project.run_apart(test=WORKS).assert_outcomes(passed=1)
    assert left(query) == set()
    assert query(LEFT_DATABASES, databases) == []


def test_a_run_that_lives_is_let_be(project: Project, query: Query) -> None:
    process = start(project)
    try:
        living = left(query)
        project.run_apart(test=WORKS).assert_outcomes(passed=1)
        assert living <= left(query)
    finally:
        kill(process)
    project.run_apart(test=WORKS).assert_outcomes(passed=1)
    assert left(query) == set()


ENDS = """
import pathlib
import pytest
from pytest_pgdbm import pgdbm_db

users_db = pgdbm_db("users")

@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    pathlib.Path(__file__).with_name("ends").touch()
"""


def test_ctrl_c_while_a_database_is_dropped_leaves_nothing_of_it(project: Project, query: Query) -> None:
    project.write("conftest.py", ENDS)
    project.write("test_it.py", WORKS)
    command = [sys.executable, "-m", "pytest", f"--pgdbm-url={project.url}", "--pgdbm-isolation=database"]

    async def go() -> str:
        async with drops_held(project.url) as held:
            process = subprocess.Popen(command, cwd=project.path, stdout=subprocess.DEVNULL)
            statement = await held()
            process.send_signal(signal.SIGINT)
            eventually((project.path / "ends").exists)
            assert await held() == statement
        assert process.wait(20) == -signal.SIGINT
        return statement

    _, database, _ = asyncio.run(go()).split('"')
    assert query(LEFT_DATABASES, f"^{database}$") == []


def test_a_test_that_loses_the_plugins_connection_fails_with_the_reason_and_later_ones_go_on(
    project: Project, query: Query
) -> None:
    result = project.run(
        test="""
        LOSE = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and application_name ~ '^pgdbm .* admin$'"
        )

        async def test_before(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0

        async def test_loses_and_asks(users_db, pgdbm_pool):
            await pgdbm_pool.fetch(LOSE)
            while True:
                await users_db.fetch_value("select 1")

        async def test_loses_and_ends(users_db, pgdbm_pool):
            await pgdbm_pool.fetch(LOSE)

        async def test_after(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
        """
    )
    result.assert_outcomes(passed=3, failed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "E *LeaseLost: the schemas of test_it.py::test_loses_and_asks were lost: the plugin's connection that shows"
            " others that they are in use has ended (a restart of the server, pg_terminate_backend, the network) or"
            " was given up after an interruption (Ctrl-C, a time-out), so that they may be swept. Later tests get"
            " others; a fixture of a wider scope is lost until its scope ends",
        ]
    )
    dead = left(query)
    assert dead
    project.run(test=WORKS).assert_outcomes(passed=1)
    assert left(query) == set()


def test_who_loses_it_under_isolation_database_fails_and_what_it_had_is_left_to_the_next_run(
    project: Project, query: Query
) -> None:
    result = project.run(
        "--pgdbm-isolation=database",
        test="""
        import pathlib

        LOSE = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and application_name ~ '^pgdbm .* admin$'"
        )

        def note(db):
            with pathlib.Path(__file__).with_name("databases").open("a") as file:
                print(db.dsn.rpartition("/")[2], file=file)

        async def test_before(users_db):
            note(users_db)

        async def test_loses_and_asks(users_db, pgdbm_pool):
            note(users_db)
            await pgdbm_pool.fetch(LOSE)
            while True:
                await users_db.fetch_value("select 1")

        async def test_loses_and_ends(users_db, pgdbm_pool):
            note(users_db)
            await pgdbm_pool.fetch(LOSE)

        async def test_after(users_db):
            note(users_db)
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
        """,
    )
    result.assert_outcomes(passed=3, failed=1, errors=2)
    result.stdout.fnmatch_lines(["E *LeaseLost: the schemas of test_it.py::test_loses_and_asks were lost: *"])
    _, lost, other, after = (project.path / "databases").read_text().split()
    assert len({lost, other, after}) == 3
    made = f"^{lost.rpartition('_')[0]}_"
    assert {row["name"] for row in query(LEFT_DATABASES, made)} == {lost, other}
    project.run(test=WORKS).assert_outcomes(passed=1)
    assert query(LEFT_DATABASES, made) == []


def test_a_databases_own_connection_that_is_ended_costs_nothing(project: Project) -> None:
    """It shows nobody that the database is in use, and comes back."""
    test = """
        END = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and application_name ~ '^pgdbm .* admin$'"
        )

        async def test_ends(users_db):
            assert len(await users_db.fetch_all(END)) == 1
            await users_db.execute("insert into {{tables.users}} (email) values ('a')")

        async def test_after(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    """
    project.run("--pgdbm-isolation=database", test=test).assert_outcomes(passed=2)
