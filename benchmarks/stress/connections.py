"""Many tests on many workers, in loops of all kinds, on a server with few connections."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sampling import Sampler
from benchmarks.stress import servers
from benchmarks.stress.projects import ini

NAME = "connections"
RESERVED = 3
"""superuser_reserved_connections, as is its default."""

_MIGRATION = "create table {{tables.things}} (id serial primary key, worker text not null);"

_CONFTEST = """
import pytest
from pytest_pgdbm import pgdbm_db

things_db = pgdbm_db("things")
"""

# Of each four tests one has a loop for the session, two one of their own, and one runs in a thread. Each takes two
# connections at once and looks for rows of others.
_TESTS = """
import asyncio
import pytest

NUMBERS = range({start}, {stop})

async def work(db, number):
    async with db.acquire() as one, db.acquire() as two:
        await one.execute(db.prepare_query("insert into {{{{tables.things}}}} (worker) values ($1)"), str(number))
        found = await two.fetch(db.prepare_query("select worker from {{{{tables.things}}}}"))
        assert [row["worker"] for row in found] == [str(number)]

@pytest.mark.parametrize("number", [each for each in NUMBERS if each % 4 == 0])
@pytest.mark.asyncio(loop_scope="session")
async def test_in_the_loop_of_the_session(things_db, number):
    await work(things_db, number)

@pytest.mark.parametrize("number", [each for each in NUMBERS if each % 4 in (1, 2)])
async def test_in_a_loop_of_its_own(things_db, number):
    await asyncio.gather(work(things_db, number))

@pytest.mark.parametrize("number", [each for each in NUMBERS if each % 4 == 3])
def test_in_a_loop_that_it_makes(things_db, number):
    asyncio.run(work(things_db, number))
"""

_PER_FILE = 100


@dataclass(frozen=True)
class Outcome:
    """What came of a run; `peak` of the server's connections that are not reserved, which are `usable`."""

    tests: int
    workers: int
    passed: int
    failed: int
    peak: int
    usable: int
    left: int
    seconds: float
    output: str

    @property
    def good(self) -> bool:
        """Whether every test passed, and the peak was within the budget, and nothing was left."""
        return self.passed == self.tests and self.failed == 0 and self.peak <= self.usable and self.left == 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this kind."""
    parser.add_argument("--tests", type=int, default=10_000, metavar="N", help="default: 10000")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--max-connections", type=int, default=40, metavar="N", help="default: 40")


def run(chosen: argparse.Namespace) -> tuple[list[str], bool]:
    """Runs it and returns its figures, and whether all went well."""
    outcome = stressed(chosen.tests, chosen.workers, chosen.max_connections)
    lines = [] if outcome.good else [outcome.output[-8000:]]
    lines += [
        "| tests | workers | max_connections | failures | peak | usable | left afterwards | seconds |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| {outcome.tests} | {outcome.workers} | {chosen.max_connections} | {outcome.tests - outcome.passed} |"
        f" {outcome.peak} | {outcome.usable} | {outcome.left} | {outcome.seconds:.0f} |",
    ]
    return lines, outcome.good


def stressed(tests: int, workers: int, max_connections: int) -> Outcome:
    """What came of so many tests."""
    settings = {"max_connections": max_connections, "superuser_reserved_connections": RESERVED}
    with tempfile.TemporaryDirectory() as folder, servers.started(**settings) as server:
        _write(Path(folder), tests)
        with Sampler(server.boss, servers.COUNT) as sampler:
            began = time.monotonic()
            output = _finish(Path(folder), server.url, workers)
            seconds = time.monotonic() - began
            left = sampler.left()
        usable = max_connections - RESERVED
        passed, failed = _counted(output, "passed"), _counted(output, "failed") + _counted(output, "error")
        return Outcome(tests, workers, passed, failed, sampler.peak, usable, left, seconds, output)


def _write(folder: Path, tests: int) -> None:
    (folder / "migrations" / "things").mkdir(parents=True)
    (folder / "migrations" / "things" / "001.sql").write_text(_MIGRATION)
    (folder / "pytest.ini").write_text(ini("session"))
    (folder / "conftest.py").write_text(_CONFTEST)
    for number, start in enumerate(range(0, tests, _PER_FILE)):
        text = _TESTS.format(start=start, stop=min(start + _PER_FILE, tests))
        (folder / f"test_stress_{number}.py").write_text(text)


def _finish(folder: Path, url: str, workers: int) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-n", str(workers), str(folder)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "PGDBM_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def _counted(output: str, what: str) -> int:
    found = re.findall(rf"(\d+) {what}", output)
    return int(found[-1]) if found else 0
