"""Work that leaves nothing behind when it fails or is interrupted, however often."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS_TO_UNDO = 10.0
"""How long the end of the process waits for builds that are being undone."""


class Undoing:
    """The builds of a home that are under way, those that are being undone, and what must not be left half done."""

    def __init__(self) -> None:
        self._working: set[asyncio.Task[Any]] = set()

    async def do(self, work: Awaitable[T], undo: Callable[[BaseException], Coroutine[Any, Any, None]]) -> T:
        """The result of the work. If it raises, that goes on up once `undo`, which is given it, has run."""
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        try:
            return await work
        except BaseException as error:
            await asyncio.shield(self._begin(undo(error)))
            raise
        finally:
            self._working.discard(task)

    async def to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, which goes on if whoever waits for it is interrupted."""
        return await asyncio.shield(self._begin(work))

    async def idle(self) -> None:
        """Waits until nothing is under way, for ten seconds at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle(), SECONDS_TO_UNDO)

    async def _idle(self) -> None:
        while self._working:
            await asyncio.wait(self._working)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Its own task, which goes on when the one that waits for it is cancelled once more."""
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task
