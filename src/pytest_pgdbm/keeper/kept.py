"""Servers that outlive their run, for the next one: who has one now, and for how long it waits for another.

A kept server has a folder and a keeper as the server of a run has; what it is called stands for all that it depends
on. It is held by runs instead of processes, and by one at a time, since a cluster has more than databases: roles,
settings, statistics. While nobody holds it, its keeper waits as long as its last run has said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pytest_pgdbm.ground.names import PREFIX
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.keeper import folder as folders
from pytest_pgdbm.keeper import holders, launch, stale, waiting
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.private import make_private

_SERVER = "server"
_TIMES = 100


class KeptServer:
    """A kept server that the caller's run holds: there already, or still to be started."""

    def __init__(self, folder: Path, key: str, lease: holders.RunLease, seconds: float) -> None:
        """Made by `take`."""
        self.folder = folder
        self._key = key
        self._lease = lease
        self._seconds = seconds

    @property
    def known(self) -> dict[str, Any] | None:
        """What an earlier run has noted of the server; None if there is none, or it was not noted."""
        return _known(self.folder)

    def note(self, server: dict[str, Any]) -> None:
        """Notes what the next run must know, passwords included: from now on the server is kept.

        Where that cannot be written, it ends with the run.
        """
        with contextlib.suppress(OSError):
            folders.write_json(self.folder / _SERVER, server)
            holders.set_patience(self.folder, self._seconds)

    def start(self, job: Job, meanwhile: Callable[[], None] = lambda: None) -> Started:
        """Starts the job's server, as `Holding.start`; one that is there already is ended first.

        The run holds none if this fails.
        """
        try:
            self._end()
            return launch.launch(self.folder, replace(job, run=self._key, folder=str(self.folder)), meanwhile)
        except BaseException:
            self.stop_server()
            raise

    def stop_server(self) -> None:
        """Ends the server, and then the run's hold. Raises ServerFailed if it cannot."""
        self._end()
        self._lease.give_up()
        stale.clear_if_abandoned(self.folder)

    def _end(self) -> None:
        holders.set_patience(self.folder, 0.0)
        waiting.clear(self.folder)
        (self.folder / _SERVER).unlink(missing_ok=True)
        launch.stop_keeper(self.folder)


def take(parent: Path, key: str, run: Run, seconds: float) -> KeptServer | None:
    """The kept server of this name, for the run, until the run's last process has ended; None if another run has it.

    `key` is ten hexadecimal digits. `seconds` is how long the server may be without a run after that. Raises
    ServerFailed and OSError if its folder cannot be made.
    """
    make_private(parent)
    folder = parent / f"{PREFIX}-{folders.user()}-{key}"
    lease = holders.RunLease(folder, run)
    for _ in range(_TIMES):
        with contextlib.suppress(folders.FolderGone):
            folders.make_folder(folder)
            with folders.door(folder):
                if holders.any_other(folder, lease):
                    return None
                stale.clear_runs(folder)
                folders.sign(folder, key)
                lease.take()
                return KeptServer(folder, key, lease, seconds)
    return None  # it is removed again and again


def sweep(parent: Path) -> None:
    """Clears what is left of kept servers whose keeper was killed, and that no run holds."""
    stale.sweep(parent)


class Seen(NamedTuple):
    """A kept server as others see it. `server` is what its run has noted, `seconds` how long it waits for a run."""

    folder: Path
    server: dict[str, Any]
    held: bool
    seconds: float


def seen(parent: Path) -> Iterator[Seen]:
    """The caller's kept servers."""
    for folder in sorted(parent.glob(f"{PREFIX}-{folders.user()}-*")):
        server = _known(folder) if folders.is_ours(folder) else None
        if server is not None:
            yield Seen(folder, server, holders.anyone(folder), holders.patience(folder))


def end(one: Seen) -> bool:
    """Has the server end at once if no run holds it, and otherwise when the run does; whether it has ended.

    Raises ServerFailed if it cannot be taken away.
    """
    try:
        with folders.door(one.folder):
            holders.set_patience(one.folder, 0.0)
            held = holders.anyone(one.folder)
    except folders.FolderGone:
        return True
    if held:
        return False
    keeper = stale.keeper_of(one.folder)
    if keeper is not None:
        launch.nudge(keeper)
        launch.wait_for_end(keeper, launch.END_SECONDS)
    return not one.folder.exists() or stale.clear_if_abandoned(one.folder)


def _known(folder: Path) -> dict[str, Any] | None:
    return folders.read_json(folder / _SERVER) if stale.keeper_of(folder) is not None else None
