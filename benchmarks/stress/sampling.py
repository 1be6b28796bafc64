"""Looks at a server again and again while runs are on it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import asyncpg

_OFTEN = 0.003

# Who is logging in has no role yet, and may be refused.
_COUNT = """
select count(*) from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
where a.backend_type = 'client backend' and not r.rolsuper
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
