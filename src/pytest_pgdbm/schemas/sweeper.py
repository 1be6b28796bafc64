"""Sweeps while the tests run, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.schemas.site import Common
from pytest_pgdbm.schemas.sweep import Swept, sweep

SECONDS_TO_END = 10.0
"""How long the end of a run waits for a sweep: a short run does its part too."""


class Sweeper:
    """Has what dead runs have left at a URL dropped; in the private loop, and off the tests' path."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._sweeping: asyncio.Task[None] | None = None
        self.swept = Swept()
        """What came of it."""

    async def begin(self) -> None:
        """Begins to sweep."""
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def end(self) -> None:
        """Waits for the sweep's end, for ten seconds at most; what is left then is for the next run's."""
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping], timeout=SECONDS_TO_END)
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping], timeout=SECONDS_TO_END)

    async def _sweep(self) -> None:
        endpoint, run = self._common.endpoint, self._common.run
        # A server without a connection to spare is swept by a later run.
        with quietly(), contextlib.suppress(*FAILURES):
            connection = await login.connect(
                endpoint, endpoint.database, endpoint.admin, application_name=self._common.application("sweep")
            )
            try:
                self.swept = await sweep(connection, run=run.id, worker=run.worker)
            finally:
                connection.terminate()
