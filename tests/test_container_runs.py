"""Whole runs on a server in a container: shared by all workers, and gone however the run ends."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine
import pytest
from conftest import Project
from deaths.scene import CONFTEST, HANGS, SECONDS_TO_VANISH, Scene, eventually
from engine import IMAGE

from pytest_pgdbm.servers import installations
from pytest_pgdbm.servers.docker_engine import LABEL, container_name

needs_engine = pytest.mark.container
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals")

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


IS_LEFT_ALONE = """
import pytest

async def test_waits(users_db, wait_for):
    wait_for("go")
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")

@pytest.mark.parametrize("n", range(300))
async def test_later(users_db, n):
    await users_db.execute("insert into {{tables.users}} (email) values ('b')")
"""


class ContainerScene(Scene):
    """A run with two workers on a container, and what the engine knows of it."""

    def __init__(self, project: Project, tmp: Path, client: Any) -> None:
        super().__init__(project, tmp)
        self._client = client
        self._begun = int(time.time())

    def start_on_container(self, *args: str, test: str, workers: int = 2) -> None:
        """Starts the run on a container of the image at hand; without workers it is the controller that tests."""
        on_container = ("--pgdbm-server=container", f"--pgdbm-image={IMAGE}")
        self.start("-n", str(workers), *args, *on_container, test=test)

    def run_here(self, *args: str, test: str) -> pytest.RunResult:
        """Runs in this process, on whatever server `args` and the image at hand lead to."""
        self.project.write("conftest.py", CONFTEST)
        return self.project.run(*args, f"--pgdbm-image={IMAGE}", test=test)

    @property
    def run_id(self) -> str:
        """The id of the one run that the controller and all workers are."""
        (sign,) = self.signs("run-*")
        return sign.name.removeprefix("run-")

    def containers(self) -> set[str]:
        """The names of all containers, running or not, that bear the name or the label of the run."""
        found = set()
        for sign in ({"name": container_name(self.run_id)}, {"label": f"{LABEL}={self.run_id}"}):
            found |= {each.name for each in self._client.containers.list(all=True, ignore_removed=True, filters=sign)}
        return found

    def created(self) -> list[str]:
        """The names of the containers that the engine made for the run, whether they are still there or not."""
        return [made["name"] for made in self._made(label=f"{LABEL}={self.run_id}")]

    def reapers(self) -> list[str]:
        """The images of testcontainers' reaper of which the engine made a container since the test began."""
        return [made["image"] for made in self._made() if "ryuk" in made["image"]]

    def _made(self, **filters: str) -> list[dict[str, str]]:
        events = self._client.events(
            since=self._begun,
            until=int(time.time()) + 1,
            decode=True,
            filters={"type": "container", "event": "create", **filters},
        )
        return [event["Actor"]["Attributes"] for event in events]

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


@needs_engine
@pytest.mark.parametrize("disabled", ["true", None], ids=["reaper disabled", "reaper not mentioned"])
def test_a_run_alone_has_one_container_and_never_a_reaper(
    scene: ContainerScene, disabled: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESTCONTAINERS_RYUK_DISABLED", raising=False)
    if disabled is not None:
        monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", disabled)
    scene.start_on_container(test=TELLS, workers=0)
    assert "4 passed" in scene.end()
    assert scene.created() == [container_name(scene.run_id)]
    assert scene.reapers() == []
    assert scene.containers() == set()
    assert scene.left() == []


@needs_engine
def test_all_workers_share_one_container_and_each_has_its_own_database(scene: ContainerScene) -> None:
    scene.start_on_container("--dist=each", test=TELLS)
    assert "8 passed" in scene.end()
    told = {path.name.split("-")[1]: path.read_text().split() for path in scene.signs("told-*")}
    assert set(told) == {"gw0", "gw1"}
    assert told["gw0"][0] == told["gw1"][0]
    assert told["gw0"][1] != told["gw1"][1]
    assert scene.created() == [container_name(scene.run_id)]
    assert scene.containers() == set()
    assert scene.left() == []


@needs_engine
def test_no_container_is_left_ten_seconds_after_everything_was_killed(scene: ContainerScene) -> None:
    scene.start_on_container(test=HANGS)
    scene.hanging()
    assert scene.containers() == {container_name(scene.run_id)}
    assert scene.left() != []
    scene.kill_all()
    eventually(lambda: scene.containers() == set() and scene.left() == [], SECONDS_TO_VANISH)


@needs_engine
def test_no_container_is_left_of_a_run_that_was_killed_while_its_container_started(scene: ContainerScene) -> None:
    scene.start_on_container(test=HANGS, workers=0)
    eventually(lambda: scene.signs("run-*") and scene.containers())
    scene.kill_all()
    assert not scene.signs("hangs-*")
    eventually(lambda: scene.containers() == set() and scene.left() == [], SECONDS_TO_VANISH)


@needs_engine
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_leaves_no_container(scene: ContainerScene, workers: int) -> None:
    scene.start_on_container(test=HANGS, workers=workers)
    scene.hanging()
    scene.signal(signal.SIGINT)
    scene.end()
    eventually(lambda: scene.containers() == set() and scene.left() == [], SECONDS_TO_VANISH)


@needs_engine
def test_a_killed_worker_costs_its_test_only_and_the_container_stays(scene: ContainerScene) -> None:
    scene.start_on_container(test=KILLS_ITS_WORKER)
    output = scene.end()
    assert "1 failed, 5 passed" in output
    assert "crashed while running 'test_it.py::test_it[3]'" in output
    assert len(scene.signs("port-*")) == 6
    assert len({path.read_text() for path in scene.signs("port-*")}) == 1
    assert scene.created() == [container_name(scene.run_id)]
    assert scene.containers() == set()
    assert scene.left() == []


@needs_engine
def test_a_run_whose_container_is_removed_says_so_and_ends(scene: ContainerScene) -> None:
    scene.start_on_container("--tb=short", test=IS_LEFT_ALONE, workers=0)
    scene.hanging()
    scene.remove_containers()
    scene.tell("go")
    output = scene.end()
    assert "1 failed, 301 errors" in output
    matcher = pytest.LineMatcher(output.splitlines())
    matcher.fnmatch_lines_random(
        [
            "E *LeaseLost: the schemas of test_it.py::test_waits were lost: *",
            # Why, the daemon is asked; where it takes long to answer, it is what connecting says.
            "the schemas of 'users', 'orders' could not be made: the server at 127.0.0.1:* does not answer any more: *",
        ]
    )
    assert scene.left() == []


# --- which server it is, and none


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without PostgreSQL's server programs."""
    monkeypatch.setattr(installations, "_WHEELS", {"no_such_wheel": ("pginstall",)})
    monkeypatch.setattr(installations, "_PLACES", ("/nowhere/*/bin",))
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no Docker daemon can be reached."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


SAYS_ITS_KIND = """
async def test_it(users_db, pgdbm_server):
    assert pgdbm_server.kind == "container"
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
"""


@needs_engine
def test_where_nothing_is_installed_auto_takes_a_container(scene: ContainerScene, nothing_installed: None) -> None:
    result = scene.run_here(test=SAYS_ITS_KIND)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [f"pgdbm: container of {IMAGE}, since the server programs initdb and postgres were not found; *"]
    )
    assert scene.created() == [container_name(scene.run_id)]
    assert scene.containers() == set()


@needs_engine
def test_a_container_of_another_version_than_asked_for_is_refused_and_removed(scene: ContainerScene) -> None:
    result = scene.run_here("--pgdbm-server-version=99", test=SAYS_ITS_KIND)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "pytest-pgdbm could not get a Postgres server",
            "  embedded: the server programs initdb and postgres of version 99 were not found",
            f"  container: the server (image {IMAGE}) is PostgreSQL *, and 99 is asked for (--pgdbm-server-version)",
            "  to mend it: install PostgreSQL 99 and name its bin folder with --pgdbm-server-bin,"
            " or ask for another version with --pgdbm-server-version",
        ]
    )
    assert scene.created() == [container_name(scene.run_id)]
    assert scene.containers() == set()


NO_DAEMON = "  container: the Docker daemon does not run: there is nothing at unix:///nowhere/docker.sock"


def test_a_container_without_an_engine_is_one_error_with_what_mends_it(
    own_server_project: Project, nowhere: None
) -> None:
    result = own_server_project.run("--pgdbm-server=container", test=SAYS_ITS_KIND)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "pytest-pgdbm could not get a Postgres server",
            NO_DAEMON,
            "  to mend it: start it (sudo systemctl start docker, or Docker Desktop),"
            " or set DOCKER_HOST to where it listens",
        ],
        consecutive=True,
    )


def test_where_neither_programs_nor_an_engine_are_auto_tells_of_both(
    own_server_project: Project, nothing_installed: None, nowhere: None
) -> None:
    result = own_server_project.run(test=SAYS_ITS_KIND)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "pytest-pgdbm could not get a Postgres server",
            "  embedded: the server programs initdb and postgres were not found",
            "      looked for the wheels no_such_wheel; pg_config, postgres and initdb on PATH; /nowhere/[*]/bin",
            NO_DAEMON,
            "  to mend it: pip install 'pytest-pgdbm[[]embedded[]]'",
        ],
        consecutive=True,
    )
