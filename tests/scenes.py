"""Runs of a project that keep the server, and what they tell of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

TELLS = """
import json, pathlib

async def test_tells(users_db, pgdbm_server):
    await users_db.execute("insert into {{tables.users}} (email) values ('ann')")
    assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 1
    told = {
        "port": pgdbm_server.port,
        "databases": [row["datname"] for row in await users_db.fetch_all("select datname from pg_database")],
        "mine": pgdbm_server.database,
    }
    pathlib.Path(__file__).with_name("told.json").write_text(json.dumps(told))
"""

HANGS = """
import os, pathlib, signal

async def test_hangs(users_db, pgdbm_server):
    told = pathlib.Path(__file__).with_name(f"hangs-{os.getpid()}.new")
    told.write_text(str(pgdbm_server.port))
    told.rename(told.with_suffix(""))
    signal.pause()
"""

OURS = ["postgres", "template0", "template1"]


class Scene:
    """Runs of a project that keep the server in a cache of their own."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.running: list[subprocess.Popen[str]] = []

    def run(
        self, *args: str, test: str = TELLS, minutes: str = "5", passed: int = 1, apart: bool = False
    ) -> dict[str, Any]:
        """Runs the tests to their end, in this process or in one of its own; what `TELLS` has told."""
        told = self.project.path / "told.json"
        told.unlink(missing_ok=True)
        run = self.project.run_apart if apart else self.project.run
        result = run(f"--pgdbm-keep-alive={minutes}", *args, test=test)
        result.assert_outcomes(passed=passed)
        return json.loads(told.read_text()) if told.exists() else {}

    def start(self, *args: str) -> int:
        """Starts a run that hangs in its first test; the port of its server."""
        self.project.write("test_it.py", HANGS)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--pgdbm-keep-alive=5", *args],
            cwd=self.project.path,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(process)
        (sign,) = eventually(lambda: list(self.project.path.glob("hangs-*[0-9]")))
        port = int(sign.read_text())
        sign.unlink()
        return port

    def kill(self) -> None:
        """Kills the run that hangs, all its processes at once."""
        process = self.running.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kept(self, what: str) -> list[str]:
        """What `--pgdbm-kept` prints."""
        result = self.project.pytester.runpytest_inprocess(f"--pgdbm-kept={what}")
        assert result.ret == 0
        assert result.stderr.str() == ""
        return result.outlines


def eventually(is_so: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < until, f"not so after {seconds} s"
        time.sleep(0.02)
    return found


@pytest.fixture
def scene(own_server_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("PGDBM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scene = Scene(own_server_project)
    yield scene
    while scene.running:
        scene.kill()
    scene.kept("stop")
    eventually(lambda: scene.kept("list") == ["no server is kept"])
    assert list(tmp_path.glob("pgdbm-*")) == []
