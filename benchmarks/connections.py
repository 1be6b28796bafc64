"""How many connections many tests on two workers take from a server, and leave on it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import runs, server
from benchmarks.sampling import Sampler

WORKERS = 2


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
    budget = asyncio.run(_budget(url))
    with Sampler(url, _COUNT) as sampler:
        began = time.monotonic()
        _run(url, migrations, tests, loop)
        seconds = time.monotonic() - began
        return Count(loop, tests, sampler.peak, budget, sampler.left(), seconds)


def _run(url: str, migrations: Path, tests: int, loop: str) -> None:
    options = ["-n", str(WORKERS), "-q", *runs.loop_options(loop)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"migrations": migrations, "tests": tests, "loop": loop}
        environment = runs.environment(Path(folder, "record.json"), settings)
        command = runs.command("plugin", options, plugins=("asyncio", "pgdbm", "xdist"))
        runs.finish(command, {**environment, "PGDBM_URL": url})


_COUNT = """
select count(*) from pg_stat_activity
where backend_type = 'client backend' and usename = current_user and pid <> pg_backend_pid()
"""

_LIMITS = """
select current_setting('max_connections')::int as most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved
"""


async def _budget(url: str) -> int:
    """What the workers may take together."""
    import asyncpg

    from pytest_pgdbm.connections.budget import Budget

    connection = await asyncpg.connect(url)
    limits = await connection.fetchrow(_LIMITS)
    await connection.close()
    endpoint: Any = SimpleNamespace(max_connections=limits["most"], reserved_connections=limits["reserved"], own=False)
    # Besides those of its pools, each has one for building and dropping, and one for what comes and goes.
    return WORKERS * (Budget.of(endpoint, WORKERS).seats + 2)


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
