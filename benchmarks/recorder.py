"""A pytest plugin that writes down when each part of each test was over, and which heavy packages were imported."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("asyncpg", "docker", "pgdbm", "testcontainers")


class Recorder:
    """Of each test the seconds of its phases, the clock at the end of body and test, and the process's memory then."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tests: list[dict[str, float]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self._tests.append({})
        try:
            return (yield)
        finally:
            self._tests[-1]["over"] = time.monotonic()
            self._tests[-1]["megabytes"] = _megabytes()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._tests:  # in xdist's controller, which runs none itself
            return
        self._tests[-1][report.when or ""] = report.duration
        if report.when == "call":
            self._tests[-1]["called"] = time.monotonic()

    def pytest_unconfigure(self) -> None:
        imported = [name for name in HEAVY if name in sys.modules]
        self._file.write_text(json.dumps({"tests": self._tests, "imported": imported}))


def _megabytes() -> float:
    """What the process has in memory; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def pytest_configure(config: pytest.Config) -> None:
    """Records where the benchmark asks for it: not in the workers of xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ["BENCH_RECORD"])))
