"""Databases that wait with a kept server for its next run: a file for each, in the server's folder.

A file is there only while nobody uses its database. Who takes it removes it first, so that a run that is killed
leaves none. What is in the files is their reader's affair, but for the first line, which is JSON and says how many
`sets` wait there; that nobody else wrote them is looked at here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pytest_pgdbm.ground.names import is_ours
from pytest_pgdbm.servers.private import is_private, make_private

_FOLDER = "waiting"


def put(folder: Path, database: str, data: bytes) -> bool:
    """Says that this database waits, with what its next user must know; False if that cannot be written."""
    new = folder / _FOLDER / f"{database}.{os.urandom(4).hex()}"
    try:
        make_private(new.parent)
        with open(new, "xb", opener=_private) as opened:
            opened.write(data)
        new.replace(new.parent / database)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        return False
    return True


def take(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The databases that wait, the latest first: of each its name and what `put` was given.

    From then on it waits no more, and no other process is given it.
    """
    for file in _files(folder):
        with contextlib.suppress(OSError):
            data = _taken(file)
            yield file.name, data


def trim(folder: Path, most: int) -> list[str]:
    """The names of the `most` databases that have come last; the others wait no more."""
    files = _files(folder)
    for file in files[most:]:
        with contextlib.suppress(OSError):
            file.unlink()
    return [file.name for file in files[:most]]


def counts(folder: Path) -> list[int]:
    """How many sets wait in each database."""
    found = []
    for file in _files(folder):
        with contextlib.suppress(OSError), _opened(file) as opened:
            found.append(_count(opened.readline()))
    return found


def clear(folder: Path) -> None:
    """Says that none waits any more, since their server has gone."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    place = folder / _FOLDER
    try:
        if not is_private(place.lstat(), stat.S_IFDIR):
            return []
        files = [(file.lstat().st_mtime_ns, file) for file in place.iterdir() if is_ours(file.name)]
    except OSError:
        return []  # none has waited yet, or another process has just taken one
    return [file for _, file in sorted(files, reverse=True)]


def _taken(file: Path) -> bytes:
    """What is in the file, which is gone then. Raises OSError, also if another process was quicker."""
    mine = file.with_name(f"{file.name}.{os.urandom(4).hex()}")
    file.rename(mine)
    try:
        with _opened(mine) as opened:
            return opened.read()
    finally:
        mine.unlink()


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(file, flags), "rb") as opened:
        if not is_private(os.fstat(opened.fileno()), stat.S_IFREG):
            raise PermissionError(f"{file} is not the caller's alone")
        yield opened


def _count(line: bytes) -> int:
    try:
        return int(json.loads(line)["sets"])
    except (ValueError, TypeError, KeyError):
        return 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
