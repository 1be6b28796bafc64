"""When and where the figures were taken."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from benchmarks.runs import Runner

_PACKAGES = ("pytest-pgdbm", "pgdbm", "asyncpg", "pytest", "pytest-asyncio", "pytest-xdist")


def facts(runner: Runner, migrations: Path) -> dict[str, str]:
    """Date, machine, versions, and which server the plugin takes here; starts it once."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_memory()}, {_system()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": runner.run("plugin", migrations=migrations).header.removeprefix("pgdbm: "),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def _memory() -> str:
    found = re.search(r"MemTotal:\s+(\d+)", _read("/proc/meminfo"))
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else "memory unknown"


def _system() -> str:
    name = re.search(r'^PRETTY_NAME="(.*)"', _read("/etc/os-release"), re.MULTILINE)
    return f"{name[1] if name else platform.system()}, {platform.machine()}"


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
