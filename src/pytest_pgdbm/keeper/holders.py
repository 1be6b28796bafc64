"""Who holds a server: one lease file for each process of its run, which counts while that process lives.

A server that outlives its run is held by runs, whose leases count while a process holds the run.

Not a pipe, which a forked child would keep open, nor a signal at the parent's death, which comes when the
thread ends that started the child.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgdbm.ground.records import Process, Run
from pytest_pgdbm.keeper import folder as folders

if TYPE_CHECKING:
    from filelock import BaseFileLock

_FOLDER = "holders"
_RUN = "run-"
_PATIENCE = "patience"


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


class RunLease:
    """A run's hold on a server that outlives it; gives it up by its end, or before."""

    def __init__(self, folder: Path, run: Run) -> None:
        """Nothing is done yet."""
        self.file = folder / _FOLDER / f"{_RUN}{run.id}"
        self._run = run

    def take(self) -> None:
        """Makes the lease, instead of those of runs that have ended; called with the folder's door held."""
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        for other in self.file.parent.glob(f"{_RUN}*"):
            other.unlink()
        folders.write_json(self.file, {"folder": str(self._run.folder)})

    def give_up(self) -> None:
        """Ends the lease."""
        self.file.unlink(missing_ok=True)


def anyone(folder: Path) -> bool:
    """Whether a living process, or a run that has one, holds the server."""
    return any(map(_lives, _leases(folder)))


def any_other(folder: Path, mine: RunLease) -> bool:
    """The same, without this run."""
    return any(_lives(lease) for lease in _leases(folder) if lease != mine.file)


def ended_runs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The lease and the folder of each run that held the server and has ended."""
    for lease in _leases(folder):
        known = folders.read_json(lease) if lease.name.startswith(_RUN) else None
        if known is not None and not anyone(Path(known["folder"])):
            yield lease, Path(known["folder"])


def set_patience(folder: Path, seconds: float) -> None:
    """Says how long the server stays while nobody holds it."""
    folders.write_json(folder / _PATIENCE, {"seconds": seconds})


def patience(folder: Path) -> float:
    """What `set_patience` has said, in seconds; 0 for the server of a run."""
    known = folders.read_json(folder / _PATIENCE)
    return 0.0 if known is None else float(known["seconds"])


def _leases(folder: Path) -> list[Path]:
    try:
        return list((folder / _FOLDER).iterdir())
    except FileNotFoundError:
        return []


def _lives(lease: Path) -> bool:
    if lease.name.startswith(_RUN):
        known = folders.read_json(lease)
        return known is not None and anyone(Path(known["folder"]))
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
