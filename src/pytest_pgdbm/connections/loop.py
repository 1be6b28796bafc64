"""One private thread with an event loop of its own, for all work that does not belong to a test's loop.

Fixtures are then plain synchronous fixtures, and do not care which loop a test runs in, or whether it has one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from pytest_pgdbm.connections.contexts import new_loop
from pytest_pgdbm.connections.quiet import quietly

T = TypeVar("T")

SECONDS_TO_UNDO = 10.0
"""How long a caller that was interrupted waits for its work to be undone."""


def running_loop() -> asyncio.AbstractEventLoop:
    """The running asyncio loop.

    Raises RuntimeError where there is none: outside of any loop, and under trio, which asyncpg does not know.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "pgdbm and asyncpg need a running asyncio event loop, and there is none here. Under anyio, choose the "
            "asyncio backend (trio cannot be used); in a synchronous test, go through the application, or asyncio.run()"
        ) from None


class PrivateLoop:
    """Runs coroutines on its own thread; `run` blocks for the result, `wait` awaits it in the caller's loop."""

    def __init__(self) -> None:
        with quietly():
            self._loop = new_loop()
        self._thread = threading.Thread(target=self._serve, name="pytest-pgdbm", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with quietly():
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T], meanwhile: Callable[[], object] = lambda: None) -> T:
        """Does the work and blocks until it is done; `meanwhile` is called in this thread, before it waits.

        An interruption (Ctrl-C, a time-out that raises in this thread) cancels the work, waits until it has
        undone itself, and goes on up.
        """
        job = _Job(self._loop, work)
        try:
            meanwhile()
            return job.result.result()
        except BaseException:
            job.cancel()
            concurrent.futures.wait([job.result], timeout=SECONDS_TO_UNDO)
            raise

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work and awaits it, without blocking the running loop.

        A cancellation cancels the work, waits until it has undone itself, and goes on up.
        """
        job = _Job(self._loop, work)
        done = asyncio.wrap_future(job.result)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            job.cancel()
            await asyncio.wait([done], timeout=SECONDS_TO_UNDO)
            raise

    def post(self, work: Coroutine[Any, Any, object]) -> None:
        """Has the work done some time, without waiting for it."""
        _Job(self._loop, work)

    def close(self) -> None:
        """Ends the loop and its thread; what still runs in it is cancelled. Nothing happens the second time."""
        if self._loop.is_closed():
            return
        winding_down = _Job(self._loop, _wind_down())
        concurrent.futures.wait([winding_down.result], timeout=SECONDS_TO_UNDO)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS_TO_UNDO)
        self._loop.close()


class _Job(Generic[T]):
    """A piece of work in the private loop. `result` is done when the work is, not when it is only cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.result.set_running_or_notify_cancel()  # nobody but the work ends it
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[tuple[T | None, BaseException | None]] | None = None
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Has the work cancelled, if it is not done."""
        if not self.result.done():
            self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(_outcome(self._work))
        self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[tuple[T | None, BaseException | None]]) -> None:
        if task.cancelled():
            self.result.set_exception(concurrent.futures.CancelledError())
            return
        value, error = task.result()
        if error is None:
            self.result.set_result(cast(T, value))
        else:
            self.result.set_exception(error)


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    # An exit that is raised in a task would end the loop instead of reaching the one who waits.
    with quietly():
        try:
            return await work, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return None, error


async def _wind_down() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=SECONDS_TO_UNDO)
    await asyncio.get_running_loop().shutdown_asyncgens()
