"""What pgdbm and asyncio log while the plugin works stays out of the tests' `caplog`.

The filter drops a record only if it was logged by work of the plugin's own, told by a context variable: what the
test's own tasks log at the same time passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = (
    "pgdbm.core",
    "pgdbm.migrations",
    "asyncio",
    "asyncpg.pool",
    "concurrent.futures",
    "filelock",
)


class _Work:
    """A piece of the plugin's work; over when `quietly` was left."""

    over = False


_working: ContextVar[_Work | None] = ContextVar("pytest_pgdbm_working", default=None)


class _NotOurs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        work = _working.get()
        return work is None or work.over


@contextmanager
def quietly() -> Iterator[None]:
    """What pgdbm and asyncio log inside is dropped, in this task or thread only."""
    # A connection that is opened inside hands its context to the test's listeners, for ever: hence the flag.
    work = _Work()
    token = _working.set(work)
    try:
        yield
    finally:
        work.over = True
        _working.reset(token)


def install() -> Callable[[], None]:
    """Puts the filter in place; returns what takes it away again."""
    added = _NotOurs()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(added)

    def remove() -> None:
        for logger in loggers:
            logger.removeFilter(added)

    return remove
