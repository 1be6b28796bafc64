"""How many connections many tests on two workers take from a server, and leave on it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import runs, server

WORKERS = 2
_OFTEN = 0.003
_PATIENCE = 2.0


@dataclass(frozen=True)
class Count:
    """Connections that were seen: at most at one moment, and two seconds after the run's end at the latest."""

    loop: str
    tests: int
    peak: int
    budget: int
    left: int
    seconds: float


def measure(migrations: Path, tests: int) -> list[Count]:
    """The same tests in session-scoped and in function-scoped loops, on a server that outlives them."""
    with server.held() as url:
        return [_count(url, migrations, tests, loop) for loop in ("session", "function")]


def _count(url: str, migrations: Path, tests: int, loop: str) -> Count:
    print(f"connections: {tests} tests on {WORKERS} workers, {loop} loops", file=sys.stderr)
    with _Sampler(url) as sampler:
        began = time.monotonic()
        _run(url, migrations, tests, loop)
        seconds = time.monotonic() - began
        until = time.monotonic() + _PATIENCE
        while sampler.now and time.monotonic() < until:
            time.sleep(0.02)  # a server process ends a moment after its connection
        return Count(loop, tests, sampler.peak, sampler.budget, sampler.now, seconds)


def _run(url: str, migrations: Path, tests: int, loop: str) -> None:
    options = ["-n", str(WORKERS), "-q", *runs.loop_options(loop)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"migrations": migrations, "tests": tests, "loop": loop}
        environment = runs.environment(Path(folder, "record.json"), settings)
        command = runs.command("plugin", options, plugins=("asyncio", "pgdbm", "xdist"))
        runs.finish(command, {**environment, "PGDBM_URL": url})


class _Sampler:
    """Looks at the server from a connection of its own, again and again; what was there before does not count."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1)
        self._ready, self._over = threading.Event(), threading.Event()
        self.peak = self.now = self.budget = 0

    def __enter__(self) -> _Sampler:
        self._sampling = self._thread.submit(asyncio.run, self._sample())
        self._sampling.add_done_callback(lambda _: self._ready.set())
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampling.result()

    async def _sample(self) -> None:
        import asyncpg

        connection = await asyncpg.connect(self._url)
        self.budget = await _budget(connection)
        before = await connection.fetchval(_COUNT)
        self._ready.set()
        while not self._over.is_set():
            self.now = await connection.fetchval(_COUNT) - before
            self.peak = max(self.peak, self.now)
            await asyncio.sleep(_OFTEN)
        await connection.close()


_COUNT = """
select count(*) from pg_stat_activity
where backend_type = 'client backend' and usename = current_user and pid <> pg_backend_pid()
"""

_LIMITS = """
select current_setting('max_connections')::int as most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved
"""


async def _budget(connection: Any) -> int:
    """What the workers may take together: each its pool, and one connection for building and dropping."""
    from pytest_pgdbm.connections.budget import Budget

    limits = await connection.fetchrow(_LIMITS)
    endpoint: Any = SimpleNamespace(max_connections=limits["most"], reserved_connections=limits["reserved"])
    return WORKERS * (Budget.of(endpoint, WORKERS).pool + 1)


def table(counts: list[Count]) -> list[str]:
    """The counts as a Markdown table."""
    return [
        f"### Connections of {counts[0].tests} tests on {WORKERS} workers",
        "",
        "| loops | peak | budget | left afterwards | whole run (s) |",
        "|---|--:|--:|--:|--:|",
        *(f"| {one.loop} | {one.peak} | {one.budget} | {one.left} | {one.seconds:.1f} |" for one in counts),
        "",
    ]


def goals(counts: list[Count]) -> list[tuple[str, str, bool]]:
    """No connection left, the peak within the budget."""
    return [
        (
            f"{one.tests} tests on {WORKERS} workers, {one.loop} loops: none left, peak within the budget",
            f"left {one.left}, peak {one.peak} of {one.budget}",
            one.left == 0 and one.peak <= one.budget,
        )
        for one in counts
    ]


def plain(counts: list[Count]) -> list[dict[str, object]]:
    """The counts as plain data."""
    return [asdict(one) for one in counts]
