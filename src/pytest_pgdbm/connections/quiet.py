"""What the plugin's libraries log while it works stays out of the tests' `caplog`.

The filter drops a record only if it was logged by work of the plugin's own, told by a context variable: what the
test's own tasks log at the same time passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = (
    "asyncio",
    "asyncpg.pool",
    "concurrent.futures",
    "docker.auth",
    "docker.utils.config",
    "filelock",
    "pgdbm.core",
    "pgdbm.migrations",
    "testcontainers.core.container",
    "testcontainers.core.docker_client",
    "testcontainers.core.image",
    "testcontainers.core.wait_strategies",
    "testcontainers.core.waiting_utils",
    "urllib3.connectionpool",
    "urllib3.util.retry",
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
    """What the plugin's libraries log inside is dropped, in this task or thread only."""
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
