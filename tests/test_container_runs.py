"""Whole runs on a server in a container: shared by all workers, and gone however the run ends."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine
import pytest
from conftest import Project
from engine import IMAGE
from test_xdist_and_deaths import HANGS, SECONDS_TO_VANISH, Scene, eventually

from pytest_pgdbm.servers.docker_engine import LABEL, container_name

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals"),
]

TELLS = """
import pathlib, pytest

IS_ORDINARY = '''
    select not (rolsuper or rolcreaterole or rolreplication or rolbypassrls)
    from pg_roles where rolname = current_user
'''

@pytest.mark.parametrize("n", range(4))
async def test_tells(users_db, pgdbm_server, worker_id, n):
    assert await users_db.fetch_value(IS_ORDINARY)
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    at = [str(pgdbm_server.port), await users_db.fetch_value("select current_database()")]
    (pathlib.Path(__file__).parent / f"told-{worker_id}-{n}").write_text(" ".join(at))
"""

KILLS_ITS_WORKER = """
import os, pathlib, pytest, signal

@pytest.mark.parametrize("n", range(6))
async def test_it(users_db, pgdbm_server, n):
    (pathlib.Path(__file__).parent / f"port-{n}").write_text(str(pgdbm_server.port))
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


class ContainerScene(Scene):
    """A run with two workers on a container, and what the engine knows of it."""

    def __init__(self, project: Project, tmp: Path, client: Any) -> None:
        super().__init__(project, tmp)
        self._client = client
        self._begun = int(time.time())

    def start_on_container(self, *args: str, test: str) -> None:
        """Starts the run, with two workers, on a container of the image at hand."""
        self.start("-n", "2", *args, "--pgdbm-server=container", f"--pgdbm-image={IMAGE}", test=test)

    @property
    def run(self) -> str:
        """The id of the one run that the controller and all workers are."""
        (sign,) = self.signs("run-*")
        return sign.name.removeprefix("run-")

    def containers(self) -> set[str]:
        """The names of all containers, running or not, that bear the name or the label of the run."""
        found = set()
        for sign in ({"name": container_name(self.run)}, {"label": f"{LABEL}={self.run}"}):
            found |= {each.name for each in self._client.containers.list(all=True, ignore_removed=True, filters=sign)}
        return found

    def created(self) -> list[str]:
        """The names of the containers that the engine made for the run, whether they are still there or not."""
        events = self._client.events(
            since=self._begun,
            until=int(time.time()) + 1,
            decode=True,
            filters={"event": "create", "label": f"{LABEL}={self.run}"},
        )
        return [event["Actor"]["Attributes"]["name"] for event in events]

    def remove_containers(self) -> None:
        """Removes what a test that failed may have left."""
        for name in self.containers() if self.signs("run-*") else ():
            self._client.containers.get(name).remove(force=True, v=True)


@pytest.fixture
def scene(own_server_project: Project) -> Iterator[ContainerScene]:
    with engine.opened() as client, tempfile.TemporaryDirectory(prefix="t") as tmp:
        Path(tmp).chmod(0o755)
        scene = ContainerScene(own_server_project, Path(tmp), client)
        yield scene
        scene.close()
        scene.remove_containers()


def test_all_workers_share_one_container_and_each_has_its_own_database(scene: ContainerScene) -> None:
    scene.start_on_container("--dist=each", test=TELLS)
    assert "8 passed" in scene.end()
    told = {path.name.split("-")[1]: path.read_text().split() for path in scene.signs("told-*")}
    assert set(told) == {"gw0", "gw1"}
    assert told["gw0"][0] == told["gw1"][0]
    assert told["gw0"][1] != told["gw1"][1]
    assert scene.created() == [container_name(scene.run)]
    assert scene.containers() == set()
    assert scene.left() == []


def test_no_container_is_left_ten_seconds_after_everything_was_killed(scene: ContainerScene) -> None:
    scene.start_on_container(test=HANGS)
    eventually(lambda: scene.signs("hangs-*"))
    assert scene.containers() == {container_name(scene.run)}
    assert scene.left() != []
    scene.kill_all()
    eventually(lambda: scene.containers() == set() and scene.left() == [], SECONDS_TO_VANISH)


def test_a_killed_worker_costs_its_test_only_and_the_container_stays(scene: ContainerScene) -> None:
    scene.start_on_container(test=KILLS_ITS_WORKER)
    output = scene.end()
    assert "1 failed, 5 passed" in output
    assert "crashed while running 'test_it.py::test_it[3]'" in output
    assert len(scene.signs("port-*")) == 6
    assert len({path.read_text() for path in scene.signs("port-*")}) == 1
    assert scene.created() == [container_name(scene.run)]
    assert scene.containers() == set()
    assert scene.left() == []
