"""Sweeps while the tests run, over a connection of its own, or after them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg

from pytest_pgdbm.connections import login, whereabouts
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.schemas.site import Common
from pytest_pgdbm.schemas.sweep import Swept, sweep

SECONDS_TO_END = 10.0
"""How long the end of a run waits for a sweep: a short run does its part too."""


class Sweeper:
    """Has what dead runs have left at a URL dropped; in the private loop, and off the tests' path.

    Where the server has no connection to spare for it, that is at the end of the run, over that of `admin`.
    """

    def __init__(self, common: Common, admin: Admin | None = None) -> None:
        self._common = common
        self._admin = admin
        self._sweeping: asyncio.Task[None] | None = None
        self.swept = Swept()
        """What came of it."""

    async def begin(self) -> None:
        """Begins to sweep, if it is not to be done at the end."""
        if self._admin is None:
            self._sweeping = asyncio.ensure_future(self._sweep(self._by_another()))

    async def end(self) -> None:
        """Waits for the sweep's end, for ten seconds at most; what is left then is for the next run's."""
        if self._admin is not None:
            self._sweeping = asyncio.ensure_future(self._sweep(self._admin.administrator()))
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping], timeout=SECONDS_TO_END)
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping], timeout=SECONDS_TO_END)

    async def _sweep(self, lent: AbstractAsyncContextManager[asyncpg.Connection]) -> None:
        run = self._common.run
        # What cannot be swept now is swept by a later run.
        with quietly(), contextlib.suppress(*FAILURES):
            async with lent as connection:
                self.swept = await sweep(connection, run=run.id, worker=run.worker)

    @asynccontextmanager
    async def _by_another(self) -> AsyncIterator[asyncpg.Connection]:
        endpoint, application = self._common.endpoint, self._common.application("sweep")
        connection = await login.connect(endpoint, endpoint.database, endpoint.admin, application_name=application)
        try:
            await whereabouts.look_again(connection, endpoint)
            yield connection
        finally:
            connection.terminate()
