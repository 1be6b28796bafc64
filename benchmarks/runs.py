"""One pytest process on one of the suites, and what was seen of it."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from benchmarks import quiet

HERE = Path(__file__).parent
SUITES = HERE / "suites"
WITHOUT_PLUGIN = ("-p", "no:pgdbm")
_WANTED = ("asyncio", "pgdbm")
_CLEARED = ("PG", "PYTEST", "BENCH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH")


@dataclass(frozen=True)
class Seen:
    """What was seen of a pytest process; times in seconds, `first_body` from its start to the first test's result."""

    wall: float
    cpu: float
    first_body: float
    phases: dict[str, float]
    whole: float
    imported: list[str]
    header: str
    began: float
    tests: list[dict[str, float]]


class Runner:
    """Starts the pytest processes, one at a time; waits so many seconds before each for the machine to be quiet."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._shares: list[float] = []

    @property
    def others(self) -> float:
        """The share of the machine that other processes took just before a run, the median."""
        return statistics.median(self._shares)

    def run(
        self,
        suite: str,
        *,
        options: Iterable[str] = (),
        cache: Path | None = None,
        at_once: bool = False,
        **settings: object,
    ) -> Seen:
        """Runs a suite to its end; raises RuntimeError unless it is green.

        `settings` are the suite's, given as BENCH_…; `cache` is the plugin's cache, where that is not the user's.
        `at_once` does not wait: a processor that was idle is slower at first.
        """
        if not at_once:
            self._shares.append(quiet.wait(self._patience))
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder, "record.json")
            before, began = _cpu(), time.monotonic()
            variables = environment(record, settings)
            if cache is not None:
                variables["PGDBM_CACHE_DIR"] = str(cache)
            output = finish(command(suite, options), variables)
            wall, cpu = time.monotonic() - began, _cpu() - before
            return _seen(json.loads(record.read_text()), output, wall, cpu, began)

    def run_on_workers(self, suite: str, workers: int, *, options: Iterable[str] = (), **settings: object) -> float:
        """Runs a suite under xdist; returns how many seconds it took. Raises RuntimeError unless it is green."""
        self._shares.append(quiet.wait(self._patience))
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            words = command(suite, ("-n", str(workers), *options), plugins=(*_WANTED, "xdist"))
            finish(words, environment(Path(folder, "record.json"), settings))
            return time.monotonic() - began


def finish(command: list[str], environment: Mapping[str, str]) -> str:
    """Runs the command to its end and returns its output. Raises RuntimeError, with the output, if it fails."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"failed: {' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def stop_kept(cache: Path) -> None:
    """Stops the servers that runs with this cache have kept."""
    variables = {**environment(Path(os.devnull), {}), "PGDBM_CACHE_DIR": str(cache)}
    here = str(SUITES / "no_database")  # not the folder in which somebody stands, whose conftest would be loaded
    finish([sys.executable, "-m", "pytest", "-c", str(SUITES / "pytest.ini"), "--pgdbm-kept=stop", here], variables)


def command(suite: str, options: Iterable[str] = (), plugins: Iterable[str] = _WANTED) -> list[str]:
    """The command line for a suite; of the installed pytest plugins only these are loaded."""
    others = sorted({point.name for point in entry_points(group="pytest11")} - set(plugins))
    blocked = [word for name in others for word in ("-p", f"no:{name}")]
    base = [sys.executable, "-m", "pytest", "-c", str(SUITES / "pytest.ini"), "-p", "recorder"]
    return [*base, *blocked, *options, str(SUITES / suite)]


def environment(record: Path, settings: Mapping[str, object]) -> dict[str, str]:
    """The environment for a suite, without what would change pytest, the plugin or asyncpg."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CLEARED)}
    told = {f"BENCH_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, **told, "BENCH_RECORD": str(record), "PYTHONPATH": f"{HERE}{os.pathsep}{SUITES}"}


def loop_options(loop: str) -> list[str]:
    """The options that put tests and fixtures into loops of this scope."""
    return ["-o", f"asyncio_default_fixture_loop_scope={loop}", "-o", f"asyncio_default_test_loop_scope={loop}"]


def _seen(record: dict[str, Any], output: str, wall: float, cpu: float, began: float) -> Seen:
    tests = record["tests"]
    first = len(tests) // 4  # by then all that is built ahead has been built
    later = tests[first + 1 :] or tests
    span = later[-1]["over"] - tests[first]["over"]
    return Seen(
        wall=wall,
        cpu=cpu,
        first_body=tests[0]["called"] - began,
        phases={name: statistics.median(test[name] for test in later) for name in ("setup", "call", "teardown")},
        whole=span / len(later),
        imported=record["imported"],
        header=next((line for line in output.splitlines() if line.startswith("pgdbm: ")), ""),
        began=began,
        tests=tests,
    )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
