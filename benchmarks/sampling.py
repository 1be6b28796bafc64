"""Looks at a server again and again while something else is at work on it."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

_OFTEN = 0.003
_PATIENCE = 2.0


class Sampler:
    """How many connections there are `now`, and at most at one moment (`peak`); those from before do not count.

    `count` is the query that counts them, over a connection by `url`.
    """

    def __init__(self, url: str, count: str) -> None:
        self._url, self._count = url, count
        self._thread = ThreadPoolExecutor(1)
        self._ready, self._over = threading.Event(), threading.Event()
        self.peak = self.now = 0

    def __enter__(self) -> Sampler:
        self._sampling = self._thread.submit(asyncio.run, self._sample())
        self._sampling.add_done_callback(lambda _: self._ready.set())
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampling.result()

    def left(self) -> int:
        """How many are left, once what has just been closed has ended: a server process ends a moment later."""
        until = time.monotonic() + _PATIENCE
        while self.now and time.monotonic() < until:
            time.sleep(0.02)
        return self.now

    async def _sample(self) -> None:
        import asyncpg

        connection = await asyncpg.connect(self._url)
        before = await connection.fetchval(self._count)
        self._ready.set()
        while not self._over.is_set():
            self.now = await connection.fetchval(self._count) - before
            self.peak = max(self.peak, self.now)
            await asyncio.sleep(_OFTEN)
        await connection.close()
