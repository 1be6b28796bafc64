"""Shards and remote workers that share a server and nothing else: no file, no process table, no name of a host."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from conftest import Project
from scenes import eventually


def _why_not() -> str:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "namespaces are Linux's, made by the program unshare"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces can be made here: {tried.stderr.strip()}" if tried.returncode else ""


_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc")
_WHY_NOT = _why_not()

pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)

MACHINE = """
set -e
hostname machine-$1
mount -t tmpfs none /mnt
mkdir /mnt/tmp
cp -r "$2" /mnt/project
cd /mnt/project
shift 2
TMPDIR=/mnt/tmp HOME=/mnt/tmp exec "$@"
"""

TESTS = """
import asyncio
import os
import signal
import socket
import pytest

@pytest.mark.parametrize("number", range({tests}))
async def test_sees_nobody_else(users_db, number):
    me = f"{{socket.gethostname()}} {{os.getpid()}} {{number}}"
    assert await users_db.fetch_value("select count(*) from {{{{tables.users}}}}") == 0
    await users_db.execute("insert into {{{{tables.users}}}} (email) values ($1)", me)
    if number >= int(os.environ.get("HANG", {tests})):
        signal.pause()
    await asyncio.sleep(0)
    assert [row["email"] for row in await users_db.fetch_all("select email from {{{{tables.users}}}}")] == [me]
"""

LEFT = "select nspname from pg_namespace where nspname like 'pgdbm%'"

Query = Callable[..., list[asyncpg.Record]]


class Machines:
    """Processes in namespaces of their own, each with a copy of the project in a file system of its own."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._running: list[subprocess.Popen[str]] = []

    def run(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command on a new machine."""
        process = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", MACHINE, "sh", str(len(self._running)), str(self._project.path), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        self._running.append(process)
        return process

    def shard(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a run of the project's tests on a new machine."""
        return self.run(sys.executable, "-m", "pytest", f"--pgdbm-url={self._project.url}", *args, **environment)

    def end(self) -> None:
        """Switches all machines off."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def machines(project: Project) -> Iterator[Machines]:
    machines = Machines(project)
    yield machines
    machines.end()


def test_shards_on_one_server_see_nothing_of_each_other_and_of_dead_ones_nothing_stays(
    project: Project, machines: Machines, query: Query
) -> None:
    project.write("test_it.py", TESTS.format(tests=100))
    doomed = machines.shard("-n", "2", HANG="20")
    eventually(lambda: len({name.split("_")[2] for name in left(query)}) == 2)
    shards = [machines.shard("-n", "2"), machines.shard()]
    eventually(lambda: len({name.split("_")[1] for name in left(query)}) > 1)
    os.killpg(doomed.pid, signal.SIGKILL)
    for shard in shards:
        output, _ = shard.communicate(timeout=120)
        assert re.search(r"= 100 passed in", output), output
    project.write("test_it.py", TESTS.format(tests=1))
    last = machines.shard()
    assert "1 passed" in last.communicate(timeout=60)[0]
    assert left(query) == set()


def test_workers_of_one_run_on_other_machines_share_the_server(
    project: Project, machines: Machines, query: Query
) -> None:
    project.write("test_it.py", TESTS.format(tests=50))
    ports = [_free_port(), _free_port()]
    for port in ports:
        machines.run(sys.executable, "-m", "execnet.script.socketserver", f"127.0.0.1:{port}")
    eventually(lambda: all(_listens(port) for port in ports))
    remote = [f"--tx=socket=127.0.0.1:{port}//chdir=/mnt/project" for port in ports]
    result = project.run_apart("-p", "xdist", "--dist=load", *remote)
    result.assert_outcomes(passed=50)
    assert left(query) == set()


def left(query: Query) -> set[str]:
    return {row["nspname"] for row in query(LEFT)}


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    tables = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A" for line in tables)
