"""Runs of a small project that die, at a server of their own or at a URL, and a look at what is left of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from conftest import Project
from deaths.leavings import left_at, left_of_runs

SECONDS_TO_VANISH = 10
"""After so long nothing may be left of a run, however it ended."""

CONFTEST = """
import os, pathlib, signal, time
import pytest
from pytest_pgdbm import Service, pgdbm_db
from pytest_pgdbm.fixtures import SESSION

HERE = pathlib.Path(__file__).parent
users_db = pgdbm_db("users")

async def hangs_in_the_seed(db):
    (HERE / f"hangs-{os.getpid()}").touch()
    await db.execute("select pg_sleep(600)")

hanging_db = pgdbm_db("hanging", migrations="migrations/users", seed=hangs_in_the_seed)

@pytest.fixture
def hang():
    def hang():
        (HERE / f"hangs-{os.getpid()}").touch()
        until = time.monotonic() + 600
        while time.monotonic() < until:
            time.sleep(0.01)
    return hang

@pytest.fixture
def wait_for():
    def wait_for(name):
        (HERE / f"hangs-{os.getpid()}").touch()
        until = time.monotonic() + 60
        while not (HERE / name).exists():
            assert time.monotonic() < until, f"no {name}"
            time.sleep(0.01)
    return wait_for

def pytest_sessionstart(session):
    (HERE / ("run-" + session.config.stash[SESSION].run.id)).touch()
"""

BEFORE = """
async def test_before(users_db, pgdbm_database):
    db = await pgdbm_database("users")
    await db["users"].execute("insert into {{tables.users}} (email) values ('before')")
    await users_db.execute("insert into {{tables.users}} (email) values ('before')")
"""

AFTER = """
async def test_after(users_db):
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    await users_db.execute("insert into {{tables.users}} (email) values ('after')")
"""

HANGS = """
def test_hangs(users_db, pgdbm_server, hang):
    hang()
"""


class Scene:
    """A run of a project in a process group of its own, whose temporary files lie in a folder of their own.

    Its tests run at `project.url`, or at a server that the run starts.
    """

    def __init__(self, project: Project, tmp: Path) -> None:
        self.project = project
        self.tmp = tmp
        self.process: subprocess.Popen[bytes] | None = None
        self._output = tmp / f"output-{id(self)}"

    def start(self, *args: str, test: str, ini: str = "", **environment: str) -> None:
        """Starts the run; it notes its name, so that what is left of it can be told."""
        for sign in self.signs("hangs-*"):
            sign.unlink()
        self.project.write("test_it.py", test)
        self.project.write("conftest.py", CONFTEST)
        if ini:
            with open(self.project.path / "pytest.ini", "a") as file:
                file.write(dedent(ini))
        where = [f"--pgdbm-url={self.project.url}"] if self.project.url else []
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:randomly", *where, *args],
                cwd=self.project.path,
                env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, seconds: float = 60) -> str:
        """Waits for its end and returns what it printed. What it started may live on and print."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run did not end in {seconds} s:\n{self.output}")
        return self.output

    def run(self, *args: str, test: str, seconds: float = 60, **more: str) -> str:
        """Runs it to its end and returns what it printed."""
        self.start(*args, test=test, **more)
        return self.end(seconds)

    @property
    def output(self) -> str:
        """What was printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """The status that the run ended with."""
        assert self.process is not None
        return self.process.returncode

    def signs(self, pattern: str) -> list[Path]:
        """Files that its tests wrote."""
        return sorted(self.project.path.glob(pattern))

    def hanging(self) -> list[int]:
        """The processes of tests that hang, once there is one."""
        signs = eventually(lambda: self.signs("hangs-*"), what=lambda: self.output)
        return [int(sign.name.partition("-")[2]) for sign in signs]

    def tell(self, sign: str) -> None:
        """Has tests go on that wait for the sign."""
        (self.project.path / sign).touch()

    def signal(self, number: int) -> None:
        """Sends the signal to all processes of the run, as a terminal does."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill_all(self) -> None:
        """Kills the controller and its workers, all at once, so that none can do anything for the others."""
        self.signal(signal.SIGKILL)
        self.end()

    def left(self) -> list[str]:
        """What there is of its runs: folders, processes, shared memory, and on the server of the URL."""
        runs = [path.name.removeprefix("run-") for path in self.signs("run-*")]
        assert runs
        return left_of_runs(runs, self.tmp) + (left_at(self.project.url, runs) if self.project.url else [])

    def nothing_is_left(self) -> None:
        """Waits until nothing is left; at a URL the next run may have to sweep before."""
        if self.project.url and self.left():
            output = self.run(test=AFTER)
            assert counted(output) == {"passed": 1}, output
        eventually(lambda: self.left() == [], SECONDS_TO_VANISH, what=lambda: "\n".join(self.left()))

    def close(self) -> None:
        """Ends the run if it still goes on."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def eventually(true: Callable[[], object], seconds: float = 30, what: Callable[[], str] = str) -> object:
    """Waits until `true()` is and returns it; an event of another process has no handle to wait on."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not so after {seconds} s\n{what()}"
        time.sleep(0.02)
    return found


def counted(output: str) -> dict[str, int]:
    """The numbers of pytest's last line: `{"passed": 2, "failed": 1}`."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r" in [\d.]+s", line)), "")
    return {what.removesuffix("s"): int(number) for number, what in re.findall(r"(\d+) ([a-z]+)", last)}


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or nothing but its record."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def dying(request: pytest.FixtureRequest, where: str) -> Iterator[Scene]:
    """A scene on a server of its own, or at a URL, as the test's parameter `where` says."""
    name = "own_server_project" if where == "embedded" else "project"
    yield from scene_of(request.getfixturevalue(name))


@pytest.fixture
def own_dying(own_server_project: Project) -> Iterator[Scene]:
    """A scene on a server of its own."""
    yield from scene_of(own_server_project)


def scene_of(project: Project) -> Iterator[Scene]:
    """A scene of this project, which is over when the iteration is."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as tmp:
        Path(tmp).chmod(0o755)
        scene = Scene(project, Path(tmp))
        try:
            yield scene
        finally:
            scene.close()
