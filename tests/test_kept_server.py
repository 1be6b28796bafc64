"""The embedded server kept for the next run, end to end: what the next run finds, and when it gets another one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import OURS, TELLS, Scene, eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_next_run_has_the_same_server_and_finds_no_row_of_the_last_one(scene: Scene, workers: str) -> None:
    first = scene.run("-n", workers, apart=True)
    second = scene.run("-n", workers, apart=True)
    assert second["port"] == first["port"]
    others = [name for name in second["databases"] if name not in OURS]
    assert second["mine"] in others
    assert len(others) <= max(1, int(workers))


def test_databases_of_tests_are_gone_too(scene: Scene) -> None:
    first = scene.run("--pgdbm-isolation=database")
    second = scene.run("--pgdbm-isolation=database")
    assert second["port"] == first["port"]
    assert not set(first["databases"]) & set(second["databases"]) - set(OURS)


def test_without_the_option_a_run_has_a_server_of_its_own(scene: Scene) -> None:
    first = scene.run()
    assert scene.run(minutes="off")["port"] != first["port"]
    assert scene.run(minutes="0")["port"] != first["port"]
    assert scene.run()["port"] == first["port"]


def test_what_a_killed_run_has_left_is_gone_in_the_next_one(scene: Scene) -> None:
    port = scene.start("-n", "2")
    scene.kill()
    told = scene.run()
    assert told["port"] == port
    assert sorted(told["databases"]) == sorted([*OURS, told["mine"]])


def test_a_connection_that_a_killed_run_has_left_is_ended(scene: Scene) -> None:
    """A process that the run has started lives on, with a connection."""
    scene.run(
        test="""
        import os, subprocess, sys

        CODE = (
            "import asyncio, asyncpg, os, sys\\n"
            "async def go():\\n"
            "    connection = await asyncpg.connect(os.environ['AT'])\\n"
            "    print('in', flush=True)\\n"
            "    await connection.fetch('select pg_sleep(600)')\\n"
            "asyncio.run(go())\\n"
        )

        async def test_it(users_db, pgdbm_url):
            for at in (pgdbm_url, pgdbm_url.rpartition("/")[0] + "/postgres"):
                left = subprocess.Popen(
                    [sys.executable, "-c", CODE], env={**os.environ, "AT": at}, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True,
                )
                assert left.stdout.readline() == "in\\n"
                left.stdout.close()
                left.returncode = 0  # nobody will wait for it
        """
    )
    scene.run(
        test="""
        async def test_it(users_db):
            text = "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)'"
            assert await users_db.fetch_value(text) == 0
        """
    )


def test_a_second_run_at_the_same_time_has_a_server_of_its_own(scene: Scene) -> None:
    port = scene.start()
    assert scene.run()["port"] != port
    scene.kill()
    assert scene.run()["port"] == port


def test_a_cluster_that_a_run_has_changed_is_not_used_again(scene: Scene) -> None:
    first = scene.run("--pgdbm-role=superuser")
    scene.run(
        "--pgdbm-role=superuser",
        test="""
        async def test_it(users_db):
            await users_db.execute("create role somebody")
        """,
    )
    second = scene.run("--pgdbm-role=superuser")
    assert second["port"] != first["port"]
    assert scene.run("--pgdbm-role=superuser")["port"] == second["port"]


def test_what_a_run_does_to_template1_is_not_found_in_the_next_ones_databases(scene: Scene) -> None:
    test = """
    import asyncpg

    async def test_it(users_db, pgdbm_url):
        connection = await asyncpg.connect(pgdbm_url.rpartition("/")[0] + "/template1")
        await connection.execute("create table left_behind (id int)")
        await connection.close()
    """
    scene.run("--pgdbm-role=superuser", test=test)
    scene.run(
        "--pgdbm-role=superuser",
        test="""
        async def test_it(users_db):
            assert await users_db.fetch_value("select to_regclass('public.left_behind')") is None
        """,
    )


def test_a_server_that_differs_from_what_is_asked_for_is_not_taken(scene: Scene) -> None:
    first = scene.run()
    other = scene.run("--pgdbm-role=superuser")
    assert other["port"] != first["port"]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if debian:
        assert scene.run(f"--pgdbm-server-bin={debian[0]}")["port"] not in (first["port"], other["port"])
    assert scene.run()["port"] == first["port"]
    assert scene.run("--pgdbm-role=superuser")["port"] == other["port"]


def test_a_kept_server_that_was_killed_is_replaced(scene: Scene) -> None:
    first = scene.run()
    data = next(Path(place) for place in _places(scene))
    os.kill(int((data / "data/postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
    assert scene.run()["port"] != first["port"]


def _places(scene: Scene) -> Iterator[str]:
    cache = Path(os.environ["PGDBM_CACHE_DIR"])
    for file in cache.glob("*/pgdbm-*/places"):
        for line in file.read_text().splitlines():
            yield json.loads(line)["at"]


def test_it_goes_when_no_run_has_come_for_so_long(scene: Scene) -> None:
    scene.run(minutes="0.02")
    eventually(lambda: scene.kept("list") == ["no server is kept"])
    # Its folder is given another name before it is removed, and is not listed then.
    eventually(lambda: list(Path(os.environ["PGDBM_CACHE_DIR"]).glob("*/pgdbm-*")) == [])


def test_kept_servers_are_listed_and_stopped(scene: Scene) -> None:
    assert scene.kept("list") == ["no server is kept"]
    assert scene.kept("stop") == ["no server is kept"]
    port = scene.run(minutes="30")["port"]
    (line,) = scene.kept("list")
    assert line.startswith("embedded PostgreSQL ")
    assert line.endswith(f" on port {port}: used by no run, stays 30 minutes without one, keeps 1 set in 1 database")
    (line,) = scene.kept("stop")
    assert line.endswith(f" on port {port}: stopped")
    assert scene.kept("list") == ["no server is kept"]


def test_a_server_in_use_is_stopped_with_its_run(scene: Scene) -> None:
    port = scene.start()
    assert scene.kept("list")[0].endswith(f" on port {port}: used by a run, stays 5 minutes without one")
    assert scene.kept("stop")[0].endswith(f" on port {port}: ends with the run that uses it")
    assert scene.kept("list")[0].endswith(f" on port {port}: ends with the run that uses it")
    scene.kill()
    eventually(lambda: scene.kept("list") == ["no server is kept"])


def test_a_cache_that_cannot_be_written_gives_the_run_a_server_of_its_own(scene: Scene) -> None:
    cache = Path(os.environ["PGDBM_CACHE_DIR"])
    cache.write_text("no folder")
    first, second = scene.run(), scene.run()
    assert first["port"] != second["port"]
    cache.unlink()


def test_the_header_says_that_the_server_is_kept_or_that_it_cannot_be(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGDBM_IMAGE", raising=False)
    result = scene.project.run_apart("--pgdbm-keep-alive=30", "--pgdbm-server=container", "--collect-only", test=TELLS)
    result.stdout.fnmatch_lines(
        [
            "pgdbm: server=container (from --pgdbm-server),"
            " keep-alive=30 (from --pgdbm-keep-alive; not used, since server=container)"
        ]
    )
