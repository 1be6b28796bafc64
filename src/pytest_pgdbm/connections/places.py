"""Where in the user's code a connection was taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import asyncpg
import pgdbm

_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep
_PASSED_BY = (
    *(str(Path(file).parent) + os.sep for file in (asyncpg.__file__, pgdbm.__file__)),
    str(Path(__file__).parent.parent) + os.sep,
    contextlib.__file__,
    _ASYNCIO,
)
_BOTTOM = tuple(_ASYNCIO + name for name in ("base_events.py", "events.py", "runners.py"))
"""What runs a task is no caller of it."""


class Place(NamedTuple):
    """A line of a file; or, where no line of the user's is on the stack, the task that runs there."""

    file: str
    line: int

    def __str__(self) -> str:
        """As `file:line`."""
        return f"{self.file}:{self.line}" if self.line else self.file


def caller() -> Place:
    """The place in the user's code from which pgdbm, asyncpg or the plugin were called just now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not _passed_by(name):
            return Place(name, frame.f_lineno)
        if name.startswith(_BOTTOM):
            break
        frame = frame.f_back
    return Place(_task(), 0)


@lru_cache(maxsize=1024)
def _passed_by(filename: str) -> bool:
    return filename.startswith(_PASSED_BY)


def _task() -> str:
    task = asyncio.current_task()
    if task is None:
        return "an unknown place"
    coroutine = task.get_coro()
    return f"task {task.get_name()!r} ({getattr(coroutine, '__qualname__', coroutine)})"
