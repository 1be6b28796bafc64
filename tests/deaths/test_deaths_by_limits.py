"""A server that has no connection, no lock, no disk or no true clock left: told, survived, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from conftest import Project
from deaths.clusters import Cluster, a_cluster
from deaths.scene import AFTER, BEFORE, Scene, counted, scene_of
from deaths.test_deaths_of_servers import WAITS, meanwhile, says


class Crowd:
    """Connections of others: all that the ordinary role can still have."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._connections: list[asyncpg.Connection] = []

    def come(self) -> None:
        """Takes all connections that are left."""
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                self._connections.append(self._loop.run_until_complete(asyncpg.connect(self._url)))

    def go(self) -> None:
        """Gives them back."""
        for connection in self._connections:
            self._loop.run_until_complete(connection.close())
        self._connections.clear()

    def close(self) -> None:
        """Ends it."""
        self.go()
        self._loop.close()


@pytest.fixture
def crowd(cluster: Cluster) -> Iterator[Crowd]:
    crowd = Crowd(cluster.url)
    yield crowd
    crowd.close()


@pytest.mark.parametrize("cluster", [{"max_connections": 20}], indirect=True)
def test_a_server_without_a_free_connection_is_told_at_the_start(at_cluster: Scene, crowd: Crowd) -> None:
    crowd.come()
    output = at_cluster.run(test=IMPATIENT + BEFORE + AFTER)
    says(output, "*127.0.0.1:* has no connection left: *", "*raise the limit (max_connections*")
    assert counted(output) == {"error": 2}, output
    crowd.go()
    at_cluster.nothing_is_left()


@pytest.mark.parametrize("cluster", [{"max_connections": 20}], indirect=True)
def test_others_that_take_all_connections_meanwhile_leave_the_run_what_it_has(at_cluster: Scene, crowd: Crowd) -> None:
    output = meanwhile(at_cluster, crowd.come, BEFORE + WAITS + AFTER)
    assert counted(output) == {"passed": 3}, output
    crowd.go()
    at_cluster.nothing_is_left()


IMPATIENT = """
from pytest_pgdbm.connections import crowd

crowd.SECONDS_TO_WAIT = 1.0
"""

SMALL_LOCK_TABLE = {"max_connections": 12, "max_locks_per_transaction": 10, "max_prepared_transactions": 0}
MANY_TABLES = "".join(f"create table {{{{tables.t{n}}}}} (id serial primary key, t text);\n" for n in range(250))


@pytest.mark.parametrize("cluster", [SMALL_LOCK_TABLE], indirect=True)
def test_a_full_lock_table_is_told_and_other_tests_go_on(at_cluster: Scene) -> None:
    at_cluster.project.write("migrations/large/001.sql", MANY_TABLES)
    output = at_cluster.run(test="async def test_large(pgdbm_db):\n    await pgdbm_db('large')\n" + AFTER)
    says(output, "*the server says: out of shared memory", "*max_locks_per_transaction*")
    assert counted(output) == {"passed": 1, "failed": 1}, output
    at_cluster.nothing_is_left()


@pytest.mark.parametrize("cluster", [SMALL_LOCK_TABLE], indirect=True)
def test_what_a_killed_run_has_left_goes_though_the_lock_table_is_too_small_for_all_of_it(at_cluster: Scene) -> None:
    for part in range(5):
        tables = "".join(f"create table {{{{tables.t{n}}}}} (id serial primary key, t text);\n" for n in range(12))
        for number in range(5):
            at_cluster.project.write(f"migrations/large/{part}{number}.sql", tables.replace(".t", f".t{part}{number}_"))
    at_cluster.start(test="async def test_large(pgdbm_db, hang):\n    await pgdbm_db('large')\n    hang()\n")
    at_cluster.hanging()
    at_cluster.kill_all()
    at_cluster.nothing_is_left()


# What is not logged fills the disk by itself; the write-ahead log would end the server.
FILLS = """
async def test_fills(users_db):
    await users_db.execute(
        "create unlogged table {{tables.filler}} as select repeat('x', 500) from generate_series(1, 1000000)"
    )
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = Path(f"/tmp/disk-{os.getpid()}-{tmp_path.name}"[:40])
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=150m,mode=755", "none", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        disk.rmdir()
        pytest.skip("only root can mount a small disk, where mounting is allowed")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    disk.rmdir()


def test_a_full_disk_is_told_and_later_tests_go_on(
    small_disk: Path, cached_cluster: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_pgdbm.servers.homes._MEMORY", str(small_disk))  # where this server's data goes
    monkeypatch.setattr("pytest_pgdbm.servers.homes.ROOMY", 0)
    with a_cluster(cached_cluster, max_wal_size="32MB", min_wal_size="32MB") as cluster:
        assert cluster.data.is_relative_to(small_disk)
        for scene in scene_of(Project(pytester, cluster.url)):
            output = scene.run("--tb=short", test=BEFORE + FILLS + AFTER, seconds=90)
            says(output, "*No space left on device*")
            assert counted(output) == {"passed": 2, "failed": 1}, output
            scene.nothing_is_left()


# The clock of a process of its own cannot be set, and libfaketime fakes what Python 3.11 sleeps by too.
SETS_BACK = """
import time

def set_back():
    now = time.time
    time.time = lambda: now() - 20 * 365 * 86400
"""


@pytest.mark.parametrize("where", ["embedded", "url"])
def test_a_clock_that_is_set_back_changes_nothing(dying: Scene) -> None:
    waits = WAITS + "    set_back()\n"
    dying.start(test=SETS_BACK + BEFORE + waits + AFTER)
    dying.hanging()
    dying.tell("go")
    output = dying.end()
    assert counted(output)["passed"] == 3, output
    dying.nothing_is_left()
    dying.start(test=SETS_BACK + "\ndef test_hangs(users_db, hang):\n    set_back()\n    hang()\n")
    dying.hanging()
    dying.kill_all()
    dying.nothing_is_left()
