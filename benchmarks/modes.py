"""What a test costs in other ways: as an ordinary role, in a database of its own, without reuse, on two workers."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks import server
from benchmarks.runs import Runner, loop_options

_LOOP = "session"
_WORKERS = 2
_TIMES_FOR_DATABASES = 4
"""So many times as many tests: three databases with the work of 90 migrations each take longer until they are there."""


@dataclass(frozen=True)
class Mode:
    """Milliseconds of a whole test, the median of the processes; `goal` is the most that it should be."""

    what: str
    whole: float
    goal: float | None


def measure(runner: Runner, services: dict[int, Path], processes: int, *, quick: bool) -> list[Mode]:
    """All ways in turn, in session-scoped loops, with the service of 30 migrations."""
    tests = 40 if quick else 200
    with server.held() as url:
        one = partial(_one, runner, services[30], tests)
        ways = {
            _PLAIN: lambda: one("plugin"),
            _ORDINARY: lambda: one("plugin", f"--pgdbm-url={url}"),
            _DATABASE: lambda: _one(runner, services[30], _TIMES_FOR_DATABASES * tests, "whole_database"),
            _OFF: lambda: one("plugin", "--pgdbm-reuse=off"),
            _WORKERS_PLUGIN: lambda: _on_workers(runner, services[30], "plugin", tests),
            _WORKERS_ROLLBACK: lambda: _on_workers(runner, services[30], "rollback", tests),
            _WORKERS_SHARED: lambda: _on_workers(runner, services[30], "no_isolation", tests),
        }
        seen: dict[str, list[float]] = defaultdict(list)
        for turn in range(processes):
            print(f"modes: run {turn + 1}", file=sys.stderr)
            for name in list(ways)[:: -1 if turn % 2 else 1]:
                seen[name].append(ways[name]())
    whole = {name: statistics.median(found) * 1e3 for name, found in seen.items()}
    goals = {_ORDINARY: 4.5, _DATABASE: 4.0, _WORKERS_PLUGIN: 1.5 * whole[_WORKERS_ROLLBACK]}
    return [Mode(name, value, goals.get(name)) for name, value in whole.items()]


_PLAIN = "a server of its own"
_ORDINARY = "an ordinary role at a URL"
_DATABASE = "three services in a database for each test"
_OFF = "`pgdbm_reuse = off`"
_WORKERS_PLUGIN = f"`-n {_WORKERS}`"
_WORKERS_ROLLBACK = f"`BEGIN`/`ROLLBACK` with `-n {_WORKERS}`"
_WORKERS_SHARED = f"no isolation with `-n {_WORKERS}`"


def _one(runner: Runner, migrations: Path, tests: int, suite: str, *options: str) -> float:
    every = (*loop_options(_LOOP), *options)
    return runner.run(suite, options=every, loop=_LOOP, migrations=migrations, tests=tests + 1).whole


def _on_workers(runner: Runner, migrations: Path, suite: str, tests: int) -> float:
    """Seconds that a run takes longer for each test more: a controller sees no test by itself."""
    run = partial(
        runner.run_on_workers, suite, _WORKERS, options=loop_options(_LOOP), loop=_LOOP, migrations=migrations
    )
    few, many = tests, 4 * tests
    less = run(tests=few)
    return (run(tests=many) - less) / (many - few)


def table(found: list[Mode]) -> list[str]:
    """The figures as a Markdown table."""
    rows = [f"| {one.what} | {one.whole:.1f} |" for one in found]
    return [f"### A whole test in other ways, {_LOOP}-scoped loops (ms)", "", "| | |", "|---|--:|", *rows, ""]


def goals(found: list[Mode]) -> list[tuple[str, str, bool]]:
    """What is wanted of them."""
    return [
        (f"a whole test, {one.what}: at most {one.goal:.1f} ms", f"{one.whole:.1f} ms", one.whole <= one.goal)
        for one in found
        if one.goal is not None
    ]


def plain(found: list[Mode]) -> list[dict[str, object]]:
    """The figures as plain data."""
    return [asdict(one) for one in found]
