"""The folder in which the processes of a run meet: how it is made, entered under a lock, and removed.

`door` is held by whoever looks at or changes who is in the folder. A folder that is taken away is renamed
first, under the door, so that nobody enters it any more, and whoever waited at its door sees that it has gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import PREFIX

NAME = re.compile(rf"{PREFIX}-(?P<uid>\d+)-(?P<run>[0-9a-f]{{10}})(?P<ended>-ended-[0-9a-f]+)?")
"""What a run's folder is called; with `ended` at its end once it is being removed."""

_DOOR = "door"
_RUN = "run.json"
_SECONDS = 15.0
_POLL = 0.01


class FolderGone(Exception):
    """The folder was removed, or replaced, before its door opened."""


def make_folder(folder: Path) -> None:
    """The folder, mode 0700, made or found; nobody else may own it or write in it.

    Raises ServerFailed if it cannot be made, or if something that is not the caller's is there, and
    FolderGone if what was there has gone: it can be made then.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _check(folder)
    except OSError as error:
        raise ServerFailed(
            f"the run's folder {folder} could not be made: {error.strerror}",
            "set TMPDIR to a folder that exists and can be written",
        ) from error


@contextlib.contextmanager
def door(folder: Path) -> Iterator[None]:
    """Holds the folder's door. Raises FolderGone if the folder is not there, or no longer.

    Raises ServerFailed if another process holds it for over 15 seconds.
    """
    from filelock import FileLock, Timeout

    with _pinned(folder) as pinned:
        try:
            lock = FileLock(folder / _DOOR, mode=0o600).acquire(_SECONDS, poll_interval=_POLL)
        # filelock makes the folder if need be, and says that it exists if it is taken away just then.
        except (FileNotFoundError, FileExistsError):
            raise FolderGone(folder) from None
        except Timeout:
            raise ServerFailed(
                f"another process held the run's folder {folder} for over {_SECONDS:g} s",
                "see which process of the run has stopped",
            ) from None
        with lock:
            if not _is_still(folder, pinned):
                raise FolderGone(folder)
            yield


def sign(folder: Path, run: str) -> None:
    """Notes in the folder whose it is, which proves later that it may be removed."""
    write_json(folder / _RUN, {"run": run})


def signed(folder: Path, run: str) -> bool:
    """Whether `sign` was called for this run."""
    known = read_json(folder / _RUN)
    return known is not None and known.get("run") == run


def is_bare(folder: Path) -> bool:
    """Whether nothing was put into the folder yet but a door."""
    return all(entry.name == _DOOR for entry in folder.iterdir())


def is_ours(folder: Path) -> bool:
    """Whether it is a real folder, by its name a run's, that belongs to the caller."""
    match = NAME.fullmatch(folder.name)
    if match is None or int(match["uid"]) != user():
        return False
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user()


def user() -> int:
    """The caller's number as it stands in names; 0 where users have none (Windows)."""
    return os.getuid() if hasattr(os, "getuid") else 0


def remove_folder(folder: Path) -> None:
    """Removes the folder; called with its door held, or on one that was renamed already."""
    match = NAME.fullmatch(folder.name)
    if match is None or not match["ended"]:
        folder = folder.rename(folder.with_name(f"{folder.name}-ended-{os.urandom(2).hex()}"))
    shutil.rmtree(folder, ignore_errors=True)


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Puts `data` into the file, mode 0600, at once or not at all."""
    new = file.with_name(f"{file.name}.{os.urandom(4).hex()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        json.dump(data, opened)
    new.replace(file)


def read_json(file: Path) -> dict[str, Any] | None:
    """What `write_json` put into the file; None if there is none."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _check(folder: Path) -> None:
    try:
        status = folder.lstat()
    except FileNotFoundError:
        raise FolderGone(folder) from None
    if not stat.S_ISDIR(status.st_mode):
        fault = "is not a folder"
    elif status.st_uid != user():
        fault = f"belongs to another user ({status.st_uid})"
    elif os.name != "nt" and status.st_mode & 0o022:
        fault = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    else:
        return
    raise ServerFailed(
        f"the run's folder {folder} cannot be used: it {fault}",
        "remove it, or set TMPDIR to a folder of your own",
    )


@contextlib.contextmanager
def _pinned(folder: Path) -> Iterator[int | None]:
    """Keeps the folder's number from being given to another one meanwhile."""
    if not hasattr(os, "O_DIRECTORY"):
        # Windows removes and renames no folder in which a file is open.
        yield None
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        raise FolderGone(folder) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_still(folder: Path, pinned: int | None) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return pinned is None or os.path.samestat(status, os.fstat(pinned))
