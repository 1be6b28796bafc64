"""How the processes of a run meet: they join it, one of them does what is done once, they leave it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_pgdbm.ground.errors import NoServer, ServerFailed, SharedFailure
from pytest_pgdbm.ground.records import Process, Run
from pytest_pgdbm.keeper import folder as folders
from pytest_pgdbm.keeper import holders, launch, stale
from pytest_pgdbm.servers.base import Job, Started

_ONCE = "once"
_RESULT = "result"
_POLL = 0.01
_TIMES = 100


def join(run: Run) -> Holding:
    """Enters the run: from now on its server stays until `leave`, or until this process's end.

    The first to come makes the run's folder. Clears what dead runs of the same user have left beside
    it. Raises ServerFailed if the folder cannot be made, or is not the caller's.
    """
    lease = _enter(run)
    stale.sweep(run.folder.parent, mine=run.folder)
    return Holding(run.folder, lease)


def leave_run(run: Run) -> None:
    """Ends the hold of this process on the run, as `Holding.leave`, whoever took it.

    For xdist's controller, whose hold a worker takes. Costs nothing if there is no folder.
    """
    if run.folder.exists():
        holders.Lease(run.folder, Process.this()).give_up()
        _see_it_end(run.folder)


class Holding:
    """A process's hold on its run."""

    def __init__(self, folder: Path, lease: holders.Lease) -> None:
        """Made by `join`."""
        self._folder = folder
        self._lease = lease
        self._pid = os.getpid()

    def once(self, make: Callable[[], dict[str, Any]], *, timeout: float) -> tuple[dict[str, Any], bool]:
        """What `make` returned to the first process of the run to call this; whether it was this one.

        `make` returns plain data, which may hold passwords. If it was ended by a kill, or by another
        error than ServerFailed and NoServer, the next one tries anew. Raises the error of `make` in
        the process that called it and SharedFailure with its text in the others, and ServerFailed
        if another process takes over `timeout` seconds.
        """
        with self._alone(timeout):
            known = folders.read_json(self._folder / _RESULT)
            if known is None:
                return self._made(make), True
        if "failure" in known:
            raise SharedFailure(known["failure"])
        return known["result"], False

    def start(self, job: Job, meanwhile: Callable[[], None] = lambda: None) -> Started:
        """Starts a server and its keeper; one that is there already is ended first.

        `meanwhile` is called while they start. Raises ServerFailed, and what `meanwhile` raises; nothing is left then.
        """
        launch.stop_keeper(self._folder)
        return launch.launch(self._folder, job, meanwhile)

    def stop_server(self) -> None:
        """Ends the run's server now, whoever uses it. Raises ServerFailed if it cannot."""
        launch.stop_keeper(self._folder)

    def server_death(self) -> str | None:
        """How the server ended by itself, up to a second ago; None if it did not."""
        return stale.server_death(self._folder)

    def leave(self) -> None:
        """Gives up the hold; the last waits until server, data and folder are gone, 20 s at most.

        Does nothing in a forked child. Raises ServerFailed if something cannot be taken away.
        """
        if os.getpid() == self._pid:
            self._lease.give_up()
            _see_it_end(self._folder)

    @contextlib.contextmanager
    def _alone(self, timeout: float) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / _ONCE, mode=0o600)
        try:
            lock.acquire(timeout, poll_interval=_POLL)
        except Timeout:
            raise ServerFailed(
                f"another process of this run was still starting the server after {timeout:g} s",
                "see what it waits for; an image that must be pulled can be pulled before the run",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _made(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            result = make()
        except (ServerFailed, NoServer) as failure:
            folders.write_json(self._folder / _RESULT, {"failure": str(failure)})
            raise
        folders.write_json(self._folder / _RESULT, {"result": result})
        return result


def _enter(run: Run) -> holders.Lease:
    for _ in range(_TIMES):
        try:
            folders.make_folder(run.folder)
            with folders.door(run.folder):
                return _taken(run)
        except folders.FolderGone:
            # Its last holder left as this one came. It is made anew.
            continue
    raise ServerFailed(
        f"the run's folder {run.folder} is removed again and again",
        "see what clears that folder's parent, or set TMPDIR to a folder of your own",
    )


def _taken(run: Run) -> holders.Lease:
    folders.sign(run.folder, run.id)
    lease = holders.Lease(run.folder, Process.this())
    lease.take()
    if run.controller is not None and run.controller.started is not None:
        # It need not ask for a server itself; between two workers it is the one who stays.
        holders.Lease(run.folder, run.controller).take()
    return lease


def _see_it_end(folder: Path) -> None:
    """Waits for the keeper if nobody holds the run any more, and does its work if it was killed."""
    keeper = stale.keeper_of(folder)
    if holders.anyone(folder):
        return
    if keeper is not None:
        launch.nudge(keeper)
        launch.wait_for_end(keeper, launch.END_SECONDS)
    if folder.exists():
        stale.clear_if_abandoned(folder)
