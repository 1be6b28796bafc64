"""The servers that are kept for the next run: which one a run may take, and what the user is told of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.keeper import kept, waiting
from pytest_pgdbm.servers.base import Job
from pytest_pgdbm.servers.cache import cache_folder
from pytest_pgdbm.servers.tuning import settings as tuning
from pytest_pgdbm.settings import Settings

_NONE = "no server is kept"
_WITH_ITS_RUN = "ends with the run that uses it"
_FORMAT = 1
"""Changes with what a run expects of a kept server."""


def kept_server(job: Job, run: Run, settings: Settings) -> kept.KeptServer | None:
    """The kept server for this job; None if none is to be kept, if another run has it, or if it can be nowhere.

    The run then has a server of its own, which is always right.
    """
    if job.cluster is None:
        return None
    parent = Path(job.cluster).parent
    minutes = settings.keep_alive.value
    with contextlib.suppress(OSError, ServerFailed):
        kept.sweep(parent)
        if minutes is not None:
            return kept.take(parent, _key(job, settings), run, minutes * 60.0)
    return None


def listed(environ: Mapping[str, str]) -> list[str]:
    """A line for each kept server of the user's."""
    lines = [f"{_told(one)}: {_state(one)}" for one in _all(environ)]
    return lines or [_NONE]


def stop(environ: Mapping[str, str]) -> list[str]:
    """Ends the kept servers, those that a run uses with their run; a line for each."""
    lines = [f"{_told(one)}: {_end(one)}" for one in _all(environ)]
    return lines or [_NONE]


def _end(one: kept.Seen) -> str:
    try:
        return "stopped" if kept.end(one) else _WITH_ITS_RUN
    except ServerFailed as error:
        return f"not stopped, {error.why}"


def _all(environ: Mapping[str, str]) -> list[kept.Seen]:
    folder = cache_folder(environ)
    return [] if folder is None else list(kept.seen(folder))


def _told(one: kept.Seen) -> str:
    return f"embedded PostgreSQL {one.server['version']} ({one.server['why']}) on port {one.server['port']}"


def _state(one: kept.Seen) -> str:
    if one.seconds == 0:
        return _WITH_ITS_RUN
    user = "a run" if one.held else "no run"
    return f"used by {user}, stays {one.seconds / 60:g} minutes without one{_keeps(one.folder)}"


def _keeps(folder: Path) -> str:
    """What waits there for the next run."""
    counts = waiting.counts(folder)
    return f", keeps {_number(sum(counts), 'set')} in {_number(len(counts), 'database')}" if counts else ""


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _key(job: Job, settings: Settings) -> str:
    """Stands for all that makes one server unlike another; the cluster's name stands for programs and system."""
    parts = [
        _FORMAT,
        [field.name for field in fields(Endpoint)],
        Path(job.cluster or "").name,
        job.admin.user,
        settings.role.value,
        tuning(int((job.version or "0").partition(".")[0])),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
