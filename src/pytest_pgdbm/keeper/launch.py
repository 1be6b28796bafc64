"""Starts the keeper from a process of the run, and ends it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest_pgdbm
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.records import Process
from pytest_pgdbm.keeper import boot, stale
from pytest_pgdbm.keeper import folder as folders
from pytest_pgdbm.servers.base import Job, Started

END_SECONDS = 10.0
"""How long the end of a keeper is waited for, its server's end included."""

# An image may have to be pulled; a server from this machine's programs has its own, shorter bounds.
_START_SECONDS = {"embedded": 240.0, "container": 1800.0}
_POLL = 0.005
_LOG = "keeper.log"
_TAIL = 15
_REMEDY = "another server: --pgdbm-server=container or --pgdbm-url"


def launch(folder: Path, job: Job, meanwhile: Callable[[], None] = lambda: None) -> Started:
    """Starts a keeper with its server, calls `meanwhile`, and waits for the server.

    Raises ServerFailed, or what `meanwhile` raises, and leaves none then.
    """
    order = folder / "job"
    folders.write_json(order, {"job": job.to_json(), "path": _path()})
    with open(folder / _LOG, "ab", opener=_private) as log:
        process = _popen(job, order, log)
    assert process.stdout is not None
    try:
        with process.stdout as pipe:
            meanwhile()
            line = _line(pipe, _START_SECONDS[job.kind])
    except BaseException:
        stop_keeper(folder)
        raise
    finally:
        process.wait()
    return _started(line, folder, job)


def stop_keeper(folder: Path) -> None:
    """Ends the folder's keeper, if it has one, and takes away its server. The folder stays.

    Raises ServerFailed if the server cannot be taken away.
    """
    keeper = stale.keeper_of(folder)
    if keeper is not None:
        _signal(keeper, signal.SIGTERM)
        if not wait_for_end(keeper, END_SECONDS):
            _signal(keeper, getattr(signal, "SIGKILL", signal.SIGTERM))
            wait_for_end(keeper, END_SECONDS)
    # Nothing is left to do, unless it was killed.
    stale.clear_server(folder)
    stale.forget_keeper(folder)


def nudge(keeper: Process) -> None:
    """Lets the keeper look at once who holds the run, instead of a tenth of a second later."""
    if hasattr(signal, "SIGUSR1"):
        _signal(keeper, signal.SIGUSR1)


def wait_for_end(keeper: Process, seconds: float) -> bool:
    """Whether the process has ended after so many seconds at most."""
    until = time.monotonic() + seconds
    while keeper.alive():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


def _popen(job: Job, order: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    title = f"pytest-pgdbm keeper {job.run}"
    # Isolated and without site: the path is handed over, and what .pth files do costs time.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", boot.__file__, title, str(order)],
        env=_environment(),
        cwd=Path(sys.executable).anchor,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )


def _path() -> list[str]:
    """Where the keeper finds what this process would import, this package first."""
    packages = [str(Path(at).parent.resolve()) for at in pytest_pgdbm.__path__]
    return packages + [str(Path(entry).absolute()) for entry in sys.path]


def _environment() -> dict[str, str]:
    # What is in `PG*` would reach a server and may be a password; `PYTHON*` is for the tests.
    return {n: v for n, v in os.environ.items() if not n.startswith(("PG", "PYTHON"))}


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    if os.name != "nt":
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise ServerFailed(f"the server did not start within {seconds:g} s", _REMEDY)
    return pipe.readline()


def _started(line: bytes, folder: Path, job: Job) -> Started:
    answer: dict[str, Any] = json.loads(line) if line.strip() else {}
    if "started" in answer:
        return Started(**answer["started"])
    if "failed" in answer:
        raise ServerFailed(**answer["failed"])
    log = (folder / _LOG).read_text(errors="replace").splitlines()[-_TAIL:]
    stop_keeper(folder)
    raise ServerFailed(
        masked("\n  ".join([f"the keeper of the {job.kind} server ended without an answer", *log])),
        _REMEDY,
    )


def _signal(process: Process, number: int) -> None:
    if process.alive():
        os.kill(process.pid, number)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
