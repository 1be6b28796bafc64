"""An event loop whose callbacks have contexts of their own, whatever other threads do.

On Python 3.10 pytest-asyncio runs tests by a backport of `asyncio.Runner` that replaces `contextvars.copy_context`, and
the class of tasks, for a moment: https://pypi.org/project/backports.asyncio.runner/. A loop of another thread that asks
for a copy then is given the test's context itself. As a context can be entered once at a time, the callback of one of
the two is lost, and who waits for it waits for ever.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context, copy_context
from typing import Any

_Task = asyncio.Task


def new_loop() -> asyncio.AbstractEventLoop:
    """A selector loop. The loop of the running policy (uvloop, say) is the test's choice, not the plugin's."""
    return asyncio.SelectorEventLoop() if sys.version_info >= (3, 11) else LoopWithOwnContexts()


class LoopWithOwnContexts(asyncio.SelectorEventLoop):
    """Copies contexts, and makes tasks, by what did so when this module was loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(lambda loop, coroutine: _Task(coroutine, loop=loop))

    # The types of the base cannot be written here.

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """As the base."""
        return super().call_soon(callback, *args, context=_own(context))

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As the base."""
        return super().call_soon_threadsafe(callback, *args, context=_own(context))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As the base."""
        return super().call_at(when, callback, *args, context=_own(context))

    # By which transports and `add_reader` have themselves told of a socket.

    def _add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
        return _with_its_own(super()._add_reader(fd, callback, *args))  # type: ignore[misc]

    def _add_writer(self, fd: Any, callback: Any, *args: Any) -> Any:
        return _with_its_own(super()._add_writer(fd, callback, *args))  # type: ignore[misc]


def _own(context: Context | None) -> Context:
    return copy_context() if context is None else context


def _with_its_own(handle: Any) -> Any:
    handle._context = copy_context()
    return handle
