"""A cluster that `initdb` made once, kept in one file as it was before its first start, and copied after that.

The file holds no secret: the superuser has a verifier that no password fits (see `scram`). Copies of one cluster have
one system identifier, which would matter if one replicated from another or were restored from its backup; servers
for tests do neither.

Nobody else can write the file or lend one: it lies in a folder that only the caller may write in, and is opened only
if it is the caller's and no link. It is complete, since it gets its name when it is; two runs that make it at once
make the same one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pytest_pgdbm.servers import packs
from pytest_pgdbm.servers.private import is_private, make_private

_UNUSED = 30 * 86400.0
_MOST = 12  # some 300 MB: virtual environments that are made anew each time in another folder need one each
_HALF_MADE = 3600.0
_ENDING = ".cluster"


class CachedCluster:
    """The file, if it is there; all that fails here means that there is none."""

    def __init__(self, file: Path) -> None:
        """Nothing is looked at yet."""
        self._file = file

    def copy(self, target: Path, owner: tuple[int, int] | None) -> bool:
        """Puts the data directory at `target`, for `owner` (user and group) or the caller.

        False if it cannot be had; parts of it may be there then.
        """
        try:
            with self._opened() as opened:
                packs.read(opened, target, owner)
        except (OSError, packs.Damaged):
            return False
        with contextlib.suppress(OSError):
            os.utime(self._file)
        return True

    def begin_check(self) -> Check:
        """Begins to look whether the file is what was written."""
        return Check(self._is_sound)

    def keep(self, data: Path) -> None:
        """Writes the file from this data directory; nothing happens where that cannot be done."""
        new = self._file.with_name(f"{self._file.name}.{os.urandom(4).hex()}")
        try:
            make_private(self._file.parent)
            _tidy(self._file.parent)
            with open(new, "xb", opener=_private) as opened:
                packs.write(data, opened)
            new.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()

    def discard(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):
            self._file.unlink()

    def _is_sound(self) -> bool:
        try:
            with self._opened() as opened:
                return packs.is_sound(opened)
        except OSError:
            return False

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(self._file, flags), "rb") as opened:
            if not is_private(os.fstat(opened.fileno()), stat.S_IFREG):
                raise PermissionError(f"{self._file} is not the caller's alone")
            yield opened


class Check:
    """A look at the file in a thread of its own, while a server starts on the copy."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._passed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def passed(self) -> bool:
        """What the look has shown, as soon as it is over."""
        self._thread.join()
        return self._passed

    def _run(self) -> None:
        self._passed = self._look()


def _tidy(folder: Path) -> None:
    """Makes room for one more: removes all but those used last, the unused ones, and what a kill has left half made."""
    kept = 0
    for age, file in sorted(_ages(folder)):
        whole = file.suffix == _ENDING
        if age > (_UNUSED if whole else _HALF_MADE) or (whole and kept == _MOST - 1):
            with contextlib.suppress(OSError):
                file.unlink()
        else:
            kept += whole


def _ages(folder: Path) -> Iterator[tuple[float, Path]]:
    """How many seconds ago each file was used last."""
    now = time.time()
    for file in folder.glob(f"*{_ENDING}*"):
        with contextlib.suppress(OSError):  # another run tidies, too
            yield now - file.lstat().st_mtime, file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
