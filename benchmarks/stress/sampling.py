"""Looks at a server again and again while runs are on it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import asyncpg

_OFTEN = 0.003

# A superuser's: a slot of those that are reserved. What is still logging in has a slot already.
_COUNT = """
select count(*) from pg_stat_activity
where pid <> pg_backend_pid() and backend_type = 'client backend' and usename is distinct from 'boss'
"""


class Sampler:
    """How many connections others than superusers have: `now`, and at most at one moment (`peak`)."""

    def __init__(self, boss: str) -> None:
        self._boss = boss
        self._thread = ThreadPoolExecutor(1)
        self._over = threading.Event()
        self.peak = self.now = 0

    def __enter__(self) -> Sampler:
        self._sampling = self._thread.submit(asyncio.run, self._sample())
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampling.result()

    async def _sample(self) -> None:
        connection = await asyncpg.connect(self._boss)
        while not self._over.is_set():
            self.now = await connection.fetchval(_COUNT)
            self.peak = max(self.peak, self.now)
            await asyncio.sleep(_OFTEN)
        await connection.close()
