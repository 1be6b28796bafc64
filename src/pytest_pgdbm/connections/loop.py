"""One private thread with an event loop of its own, for all work that does not belong to a test's loop.

Fixtures are then plain synchronous fixtures, and do not care which loop a test runs in, or whether it has one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from pytest_pgdbm.connections.quiet import quietly

T = TypeVar("T")

_SECONDS_TO_CANCEL = 10.0
"""How long a caller that was interrupted waits for its work to be undone."""


class PrivateLoop:
    """Runs coroutines on its own thread; `run` blocks for the result, `wait` awaits it in the caller's loop."""

    def __init__(self) -> None:
        with quietly():
            # Not the loop of the running policy: uvloop, say, is the test's choice, not the plugin's.
            self._loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._serve, name="pytest-pgdbm", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with quietly():
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work and blocks until it is done.

        An interruption (Ctrl-C, a time-out that raises in this thread) cancels the work, waits until it has
        undone itself, and goes on up.
        """
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                # The future is done as soon as it is cancelled; the work itself is waited for by this.
                self._barrier()
            raise

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work and awaits it, without blocking the running loop. A cancellation cancels the work."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """Ends the loop and its thread; what still runs in it is cancelled. Nothing happens the second time."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop).result(_SECONDS_TO_CANCEL)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS_TO_CANCEL)
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(_quietly(work), self._loop)

    def _barrier(self) -> None:
        others = asyncio.run_coroutine_threadsafe(self._settle(), self._loop)
        concurrent.futures.wait([others], timeout=_SECONDS_TO_CANCEL)

    async def _settle(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=_SECONDS_TO_CANCEL)

    async def _wind_down(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self._settle()
        await self._loop.shutdown_asyncgens()


async def _quietly(work: Coroutine[Any, Any, T]) -> T:
    with quietly():
        return await work
