"""What runs have left: on this machine, and on a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil
from databases import connected

_PLACES = ("/dev/shm", "/tmp", "/var/tmp")

_LEFT = """
select 'schema ' || nspname from pg_namespace where nspname like 'pgdbm%'
union all select 'database ' || datname from pg_database where split_part(datname, '_', 2) = any($1)
order by 1
"""


def left_of_runs(runs: Iterable[str], tmp: Path) -> list[str]:
    """Folders, sockets, shared memory and processes that bear the runs' names."""
    names = tuple(runs)
    found = [str(path) for place in (tmp, *map(Path, _PLACES)) for path in place.glob("*pgdbm-*")]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()) + " in " + process.cwd())
    return [each for each in found if any(name in each for name in names)]


def left_at(url: str, runs: Iterable[str]) -> list[str]:
    """The plugin's schemas in the database, and the databases that these runs made."""

    async def look() -> list[str]:
        async with connected(url) as connection:
            return [row[0] for row in await connection.fetch(_LEFT, list(runs))]

    return asyncio.run(look())
