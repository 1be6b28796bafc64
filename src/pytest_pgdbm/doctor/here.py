"""What the plugin has on this host: the cache, kept servers, and folders of runs of which no process lives."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_pgdbm.doctor.lines import Row, labelled, number, section, size
from pytest_pgdbm.keeper import stale
from pytest_pgdbm.servers import keeping
from pytest_pgdbm.servers.cache import cache_folder

_DAY = 86400.0
_MOST = 3


def lines(environ: Mapping[str, str]) -> list[str]:
    """The caller's own; what belongs to other users is not looked at."""
    rows = [*_cache(environ), *labelled("kept", keeping.listed(environ)), *_dead(environ)]
    return section("On this host", rows)


def dead_folders(environ: Mapping[str, str]) -> list[Path]:
    """The folders that killed runs and servers have left, those of servers that were kept among them."""
    return [folder for parent in parents(environ) for folder in stale.abandoned(parent)]


def parents(environ: Mapping[str, str]) -> list[Path]:
    """Where runs and kept servers have their folders."""
    cache = cache_folder(environ)
    return [Path(tempfile.gettempdir()), *([] if cache is None else [cache])]


def _cache(environ: Mapping[str, str]) -> list[Row]:
    folder = cache_folder(environ)
    if folder is None:
        return [("cache", "nowhere: the user has no home, or the cache directory in it is somebody else's")]
    entries = sorted(_entries(folder), reverse=True)
    total = f"{number(len(entries), 'cluster')}, {size(sum(amount for _, amount, _ in entries))}"
    told = [f"{folder}: {total if entries else 'empty'}"]
    told += [f"{name}: {size(amount)}, used {_ago(used)}" for used, amount, name in entries[:_MOST]]
    if len(entries) > _MOST:
        told.append(f"and {len(entries) - _MOST} more; those used last stay, a dozen at most, for a month")
    return labelled("cache", told)


def _entries(folder: Path) -> Iterator[tuple[float, int, str]]:
    for file in folder.glob("*.cluster"):
        with contextlib.suppress(OSError):  # another run may be tidying
            status = file.lstat()
            yield status.st_mtime, status.st_size, file.name


def _ago(then: float) -> str:
    days = int(max(time.time() - then, 0) / _DAY)
    return "today" if days == 0 else f"{number(days, 'day')} ago"


def _dead(environ: Mapping[str, str]) -> list[Row]:
    told = [f"{folder}: {size(_amount(folder))}, would be swept" for folder in dead_folders(environ)]
    return labelled("dead runs", told or ["none has left a folder"])


def _amount(folder: Path) -> int:
    amount = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            amount += file.lstat().st_size
    return amount
