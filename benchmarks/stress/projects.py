"""A small project whose runs can be killed at any moment, and a look at what they have left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import asyncpg
import psutil

_INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = {}
filterwarnings = error
addopts = -q -p no:cacheprovider -p no:hypothesispytest -p no:anyio
"""

_MIGRATION = "create table {{tables.things}} (id serial primary key, run text not null);"

# The name is there before anything is made that bears it.
_CONFTEST = """
import pathlib
import pytest
from pytest_pgdbm import pgdbm_db
from pytest_pgdbm.fixtures import SESSION

HERE = pathlib.Path(__file__).parent
things_db = pgdbm_db("things")

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    (HERE / ("run-" + session.config.stash[SESSION].run.id)).touch()

@pytest.fixture
def mine(request):
    return request.config.stash[SESSION].run.id
"""

TESTS = """
import asyncio, pathlib, pytest

async def work(db, mine):
    found = {row["run"] for row in await db.fetch_all("select run from {{tables.things}}")}
    (pathlib.Path(__file__).with_name("foreign-" + mine).write_text(repr(found)) if found else None)
    assert found == set()
    for _ in range(3):
        await db.execute("insert into {{tables.things}} (run) values ($1)", mine)
        await asyncio.sleep(0.01)
    found = [row["run"] for row in await db.fetch_all("select run from {{tables.things}}")]
    (pathlib.Path(__file__).with_name("foreign-" + mine).write_text(repr(found)) if found != 3 * [mine] else None)
    assert found == 3 * [mine]

@pytest.mark.parametrize("n", range(5))
async def test_schema(things_db, mine, n):
    await work(things_db, mine)

@pytest.mark.parametrize("n", range(2))
async def test_database(pgdbm_database, mine, n):
    db = await pgdbm_database("things")
    await work(db["things"], mine)
"""

LONG = """
async def test_goes_on(things_db, mine):
    while not pathlib.Path(__file__).with_name("stop").exists():
        await things_db.execute("insert into {{tables.things}} (run) values ($1)", mine)
        assert [row["run"] for row in await things_db.fetch_all("select run from {{tables.things}}")] == [mine]
        await things_db.execute("delete from {{tables.things}}")
        await asyncio.sleep(0.05)
"""


def ini(scope: str) -> str:
    """A pytest.ini with loops of this scope, and without plugins that would take long to load in each process."""
    return _INI.format(scope)


class Project:
    """A folder with tests; `start` runs them at a URL, or at servers of the runs' own without one."""

    def __init__(self, folder: Path, tests: str = TESTS) -> None:
        self.folder = folder
        self.tmp = folder / "t"
        self.tmp.mkdir(parents=True)
        for parent in (folder, self.tmp):
            parent.chmod(0o755)
        (folder / "migrations" / "things").mkdir(parents=True)
        (folder / "migrations" / "things" / "001.sql").write_text(_MIGRATION)
        (folder / "pytest.ini").write_text(ini("function"))
        (folder / "conftest.py").write_text(_CONFTEST)
        (folder / "test_things.py").write_text(tests)

    def start(self, url: str | None, *args: str) -> subprocess.Popen[bytes]:
        """A run in a process group of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTEST"))}
        where = {} if url is None else {"PGDBM_URL": url}
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "pytest", *args],
                cwd=self.folder,
                env={**kept, **where, "TMPDIR": str(self.tmp)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def runs(self) -> list[str]:
        """The names of its runs."""
        return [path.name.removeprefix("run-") for path in self.folder.glob("run-*")]

    @property
    def foreign(self) -> int:
        """How many runs have seen rows that they did not write."""
        return len(list(self.folder.glob("foreign-*")))

    def directories(self) -> list[str]:
        """Folders and shared memory that bear a run's name."""
        found = [path for place in (self.tmp, *map(Path, ("/dev/shm", "/tmp", "/var/tmp"))) for path in place.glob("*")]
        return [str(path) for path in found if any(run in path.name for run in self.runs)]

    def processes(self) -> list[str]:
        """Processes that bear a run's name, in their words or as the folder that they are in."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join([*process.cmdline(), process.cwd()]))
        return [each for each in found if any(run in each for run in self.runs)]


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Sends a signal to all processes of a run and sees it end; after ten seconds it is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def left_at(url: str, runs: Iterable[str]) -> tuple[list[str], list[str]]:
    """The schemas and databases on the server that bear a run's name."""
    mine = list(runs)
    named = "split_part({0}, '_', 1) = 'pgdbm' and split_part({0}, '_', 2) = any($1)"
    schemas = f"select nspname from pg_namespace where {named.format('nspname')}"
    databases = f"select datname from pg_database where {named.format('datname')}"
    return [row[0] for row in ask(url, schemas, mine)], [row[0] for row in ask(url, databases, mine)]


def ask(url: str, query: str, *args: object) -> list[asyncpg.Record]:
    """What a query gives."""

    async def go() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()

    return asyncio.run(go())
