"""Who holds the run: one lease file for each of its processes, which counts while that process lives.

Not a pipe, which a forked child would keep open, nor a signal at the parent's death, which comes when the
thread ends that started the child.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgdbm.ground.records import Process

if TYPE_CHECKING:
    from filelock import BaseFileLock

_FOLDER = "holders"


class Lease:
    """This process's hold on the run, or that of the process it names."""

    def __init__(self, folder: Path, process: Process) -> None:
        """Nothing is done yet."""
        self._file = folder / _FOLDER / _name(process)
        self._process = process
        self._lock: BaseFileLock | None = None

    def take(self) -> None:
        """Makes the lease; called with the folder's door held, by the process it is for or, if its start
        can be read, by any.
        """
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        self._file.touch(mode=0o600)
        if self._process.started is None:
            self._lock = _locked(self._file)

    def give_up(self) -> None:
        """Ends the lease."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        if self._lock is not None:
            self._lock.release()


def anyone(folder: Path) -> bool:
    """Whether a living process holds the run."""
    try:
        return any(_lives(lease) for lease in (folder / _FOLDER).iterdir())
    except FileNotFoundError:
        return False


def _lives(lease: Path) -> bool:
    process = _process(lease.name)
    if process is None:
        return False
    if process.started is not None:
        return process.alive()
    # The number alone could be another process's by now; the lock ends with the process.
    free = _locked(lease)
    if free is None:
        return True
    free.release()
    return False


def _locked(file: Path) -> BaseFileLock | None:
    from filelock import FileLock, Timeout

    lock = FileLock(file, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _name(process: Process) -> str:
    return f"{process.pid}" if process.started is None else f"{process.pid}-{process.started}"


def _process(name: str) -> Process | None:
    pid, _, started = name.partition("-")
    if not pid.isdigit() or not (started.isdigit() or not started):
        return None
    return Process(int(pid), int(started) if started else None)
