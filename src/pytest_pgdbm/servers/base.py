"""What the keeper needs of a server that it owns."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pytest_pgdbm.ground.endpoint import Login

_PLACES = "places"


@dataclass(frozen=True)
class Job:
    """What the keeper is asked to start. It travels in a file of mode 0600 in the run's folder.

    `run` is the run's id; `kind` says which of the two parts below counts. `installation` is the
    `bin` folder of the server programs, `image` the container image. `admin` is the superuser to
    make; a container is given the password, the installation's `initdb` only its `verifier`. `cluster` is the
    file of the cached cluster, which need not exist.
    """

    run: str
    kind: Literal["embedded", "container"]
    folder: str
    admin: Login
    installation: str | None = None
    version: str | None = None
    verifier: str | None = None
    cluster: str | None = None
    image: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The job as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        return cls(**{**data, "admin": Login(**data["admin"])})


@dataclass(frozen=True)
class Started:
    """Where a server that was started listens. `notes` are names and files for error messages."""

    host: str
    port: int
    socket_dir: str | None = None
    log: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


class Server(Protocol):
    """A server in the keeper's hands."""

    def start(self) -> Started:
        """Starts it; returns once it listens, or is about to: the caller logs in to find out.

        Raises ServerFailed, and leaves nothing behind then.
        """

    def stop(self) -> None:
        """Takes it away with all its data, at once and whatever state it is in.

        Nothing happens the second time.
        """

    def died(self) -> str | None:
        """Why it is no longer there, or None while it is."""


@dataclass(frozen=True)
class Place:
    """What a server has outside the run's folder, so that it can be taken away after a kill.

    `kind` says whose it is. `at` is a directory for `embedded` (with the processes that work in it), and
    the run's id, `@` and where the Docker daemon is for `container`.
    """

    kind: Literal["embedded", "container"]
    at: str


def record(folder: Path, place: Place) -> None:
    """Notes the place in the run's folder. Called before it is made, so that a kill leaves no gap.

    Raises FileNotFoundError if the run's folder was cleared meanwhile: then nothing must be made.
    """
    line = json.dumps(asdict(place)) + "\n"
    # Without O_CREAT: the keeper made the file, and a folder that was cleared must not come back.
    descriptor = os.open(folder / _PLACES, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def recorded(folder: Path) -> list[Place]:
    """The places noted in the run's folder; a half-written last line is a place not made yet."""
    try:
        lines = (folder / _PLACES).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [place for place in map(_place, lines) if place is not None]


def new_record(folder: Path) -> None:
    """Makes the empty record, mode 0600."""
    os.close(os.open(folder / _PLACES, os.O_WRONLY | os.O_CREAT, 0o600))


def end_record(folder: Path) -> None:
    """Removes the record: nothing is left of what it named."""
    (folder / _PLACES).unlink(missing_ok=True)


def _place(line: str) -> Place | None:
    try:
        return Place(**json.loads(line))
    except (ValueError, TypeError):
        return None


def scratch(folder: Path) -> Path:
    """The part of the run's folder that a server may use."""
    return folder / "server"
