"""Folders and files that nobody but the caller can have written in."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make_private(folder: Path) -> None:
    """The folder, in which only the caller may write, made or found. Raises OSError if there can be none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder.lstat(), stat.S_IFDIR):
        raise PermissionError(f"{folder} is not the caller's alone")


def is_private(status: os.stat_result, kind: int) -> bool:
    """Whether it is of this kind (`S_IFREG`, `S_IFDIR`; a link is neither), and only the caller may write in it."""
    if stat.S_IFMT(status.st_mode) != kind:
        return False
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
