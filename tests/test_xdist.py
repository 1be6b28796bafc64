"""One server for a whole run, for all its workers; `tests/deaths` has the ways in which runs end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Project
from deaths.scene import HANGS, SECONDS_TO_VANISH, Scene, eventually, scene_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals")


@pytest.fixture
def scene(own_server_project: Project) -> Iterator[Scene]:
    yield from scene_of(own_server_project)


TELLS = """
import os, pathlib, pytest

@pytest.mark.parametrize("n", range(8))
async def test_tells(users_db, pgdbm_server, worker_id, n):
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    here = pathlib.Path(__file__).parent
    (here / f"told-{worker_id}-{n}").write_text(f"{pgdbm_server.port} {pgdbm_server.database}")
"""


def test_all_workers_share_one_server_and_each_has_its_own_database(scene: Scene) -> None:
    scene.start("-n", "2", "--dist=each", test=TELLS)
    assert "16 passed" in scene.end()
    told = {path.name.split("-")[1]: path.read_text().split() for path in scene.signs("told-*")}
    assert set(told) == {"gw0", "gw1"}
    assert told["gw0"][0] == told["gw1"][0]
    assert told["gw0"][1] != told["gw1"][1]
    assert scene.left() == []


def test_a_run_alone_leaves_nothing(scene: Scene) -> None:
    scene.start(test="async def test_it(users_db): pass")
    assert "1 passed" in scene.end()
    assert scene.left() == []


def test_a_killed_worker_costs_its_test_only_and_its_replacement_joins(scene: Scene) -> None:
    scene.start(
        "-n",
        "1",
        test="""
        import os, pathlib, pytest, signal

        @pytest.mark.parametrize("n", range(6))
        async def test_it(users_db, pgdbm_server, worker_id, n):
            (pathlib.Path(__file__).parent / f"port-{worker_id}-{n}").write_text(str(pgdbm_server.port))
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
            if n == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    output = scene.end()
    assert "1 failed, 5 passed" in output
    assert "worker 'gw" in output
    told = scene.signs("port-*")
    assert len({path.name.split("-")[1] for path in told}) == 2  # the killed one, and the one that came for it
    assert len({path.read_text() for path in told}) == 1
    assert scene.left() == []


def test_the_server_stays_while_the_controller_lives_and_goes_with_it(scene: Scene) -> None:
    scene.start("-n", "2", test=HANGS)
    (worker,) = scene.hanging()
    assert scene.process is not None
    scene.process.send_signal(signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: scene.left() == [], SECONDS_TO_VANISH)


def test_two_runs_at_once_never_meet(scene: Scene, pytester: pytest.Pytester) -> None:
    other = Scene(scene.project, scene.tmp)
    scene.start("-n", "2", test=TELLS)
    other.start("-n", "2", test=TELLS)
    assert "8 passed" in scene.end()
    assert "8 passed" in other.end()
    assert scene.left() == []


def test_a_run_inside_a_run_is_one_of_its_own(scene: Scene) -> None:
    scene.start(
        "-n",
        "1",
        "-p",
        "pytester",
        test="""
        pytest_plugins = ["pytester"]

        def test_outer(pgdbm_server, pytester):
            pytester.makeini("[pytest]\\naddopts = -p no:xdist -p no:hypothesispytest")
            pytester.makepyfile(f"def test_inner(pgdbm_server): assert pgdbm_server.port != {pgdbm_server.port}")
            pytester.runpytest_inprocess().assert_outcomes(passed=1)

        async def test_goes_on(users_db):
            assert await users_db.fetch_value("select 1") == 1
        """,
    )
    assert "2 passed" in scene.end()
    assert scene.left() == []


def test_a_database_at_a_url_is_afterwards_as_it_was(project: Project, query: Callable[..., list[Any]]) -> None:
    objects = (
        "select nspname as name from pg_namespace where nspname !~ '^pg_(toast_)?temp'"
        " union all select relname from pg_class"
    )
    before = sorted(str(row["name"]) for row in query(objects))
    project.run_apart("-n", "2", test=TELLS).assert_outcomes(passed=8)
    assert sorted(str(row["name"]) for row in query(objects)) == before
    assert (
        query("select pid from pg_stat_activity where application_name like 'pgdbm %' and datname = current_database()")
        == []
    )
