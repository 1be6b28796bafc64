"""The keeper: starts a server, lives while a process of the run does, then takes everything away.

It runs alone (see `launch`), imports little, and answers with one line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from pytest_pgdbm.ground.errors import PgdbmError, ServerFailed
from pytest_pgdbm.keeper import folder as folders
from pytest_pgdbm.keeper import holders, stale
from pytest_pgdbm.keeper.bell import Bell
from pytest_pgdbm.servers.base import Job, Server, new_record
from pytest_pgdbm.servers.owned import server_for

_POLL = 0.1
_POLL_KEPT = 1.0
_LOOK_AT_SERVER = 1.0
_REMEDY = "this is a fault of pytest-pgdbm: please report it, with the lines above"


def main(job: dict[str, Any]) -> None:
    """Keeps the job's server until the run's end; never returns."""
    status = 1
    try:
        Keeper(Job.from_json(job)).keep()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # A thread that still waits for a container engine must not keep this process.
        os._exit(status)


class Keeper:
    """One server, and the run that it is kept for."""

    def __init__(self, job: Job) -> None:
        """Nothing is started yet."""
        self._job = job
        self._folder = Path(job.folder)
        self._server: Server | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._asked_to_end = False
        self._bell = Bell()
        self._held = time.monotonic()

    def keep(self) -> None:
        """Starts the server, answers, and stays until the end, for the folder if there is no server."""
        self._mind_signals()
        serves = False
        try:
            serves = self._serve()
        except Exception:
            # Whatever it was, the end is the same.
            traceback.print_exc()
        self._stay(serves)

    def _serve(self) -> bool:
        """Whether there is a server now."""
        # From here on a kill leaves no gap: the record is there before anything that it will name.
        new_record(self._folder)
        stale.announce_keeper(self._folder)
        answer = self._first_answer()
        if answer is not None:
            _answer(answer)
            _load_what_the_end_needs()
        return answer is not None and "started" in answer

    def _mind_signals(self) -> None:
        # Not SIG_IGN, which the server would inherit.
        for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _only_wakes)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self._asked_to_end = True

    def _first_answer(self) -> dict[str, Any] | None:
        """What came of the start; None if nobody waits for it any more."""
        try:
            self._server = server_for(self._job)
        except Exception as error:
            return _failure(error)
        # It may take minutes (an image is pulled). Meanwhile the holders are looked after here.
        threading.Thread(target=self._start, args=(self._server,), daemon=True).start()
        while self._is_wanted():
            try:
                return self._answers.get(timeout=_POLL)
            except queue.Empty:
                continue
        return None

    def _start(self, server: Server) -> None:
        try:
            self._answers.put({"started": vars(server.start())})
        except BaseException as error:
            self._answers.put(_failure(error))

    def _stay(self, serves: bool) -> None:
        looked = time.monotonic()
        while self._is_wanted() or not self._ended():
            # Nobody waits for the end of a server that is kept.
            self._bell.wait(_POLL_KEPT if holders.patience(self._folder) else _POLL)
            if serves and time.monotonic() - looked >= _LOOK_AT_SERVER:
                looked = time.monotonic()
                self._look_at_server()

    def _is_wanted(self) -> bool:
        """Whether somebody holds the server, or is still expected to."""
        if self._asked_to_end:
            return False
        now = time.monotonic()
        if holders.anyone(self._folder):
            self._held = now
            return True
        stale.clear_runs(self._folder)
        return now - self._held < holders.patience(self._folder) and not self._has_died()

    def _has_died(self) -> bool:
        return self._server is not None and self._server.died() is not None

    def _look_at_server(self) -> None:
        why = self._server.died() if self._server is not None else None
        if why is not None and not stale.server_death(self._folder):
            stale.note_server_death(self._folder, why)

    def _ended(self) -> bool:
        """Takes the server away, and the folder if nobody is in it; False if somebody came in."""
        try:
            with folders.door(self._folder):
                if self._is_wanted():
                    return False
                self._stop_server()
                if holders.anyone(self._folder):
                    stale.forget_keeper(self._folder)
                else:
                    folders.remove_folder(self._folder)
        except folders.FolderGone:
            self._stop_server()
        except ServerFailed:
            # Somebody stands still in the door.
            return False
        return True

    def _stop_server(self) -> None:
        try:
            if self._server is not None:
                self._server.stop()
        except PgdbmError:
            # The record stays, with the folder: the last to leave, or a later run, tries again.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def _only_wakes(*_: object) -> None:
    """The bell rings for every signal that has a handler."""


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ServerFailed):
        return {"failed": {"why": error.why, "remedy": error.remedy}}
    traceback.print_exception(type(error), error, error.__traceback__)
    why = "".join(traceback.format_exception_only(type(error), error)).strip()
    return {"failed": {"why": why, "remedy": _REMEDY}}


def _answer(answer: dict[str, Any]) -> None:
    # Who asked may have been killed by now.
    with contextlib.suppress(OSError):
        print(json.dumps(answer), flush=True)
    # Whoever reads the answer sees its end, though this process lives on.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _load_what_the_end_needs() -> None:
    """The environment may be removed before this process ends, as tox and CI do."""
    import filelock  # noqa: F401
