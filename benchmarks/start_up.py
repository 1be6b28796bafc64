"""What a run costs before its first test is over: without a database, on an embedded server, on a container."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.containers import Watcher
from benchmarks.runs import WITHOUT_PLUGIN, Runner, Seen, stop_kept

_Side = Callable[[], Seen]


@dataclass(frozen=True)
class Figure:
    """A difference in seconds: the median of the pairs' differences; `parts` are the medians that it comes from."""

    what: str
    value: float
    goal: float | None
    parts: dict[str, float] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether the goal is met, and nothing heavy was imported where nothing should be."""
        return (self.goal is None or self.value <= self.goal) and not self.imported


def no_database(runner: Runner, processes: int) -> list[Figure]:
    """A run that uses no database, with the plugin and without; pytest-asyncio is loaded in both."""
    seen = _alternate(
        "no database",
        processes,
        {
            "with the plugin": lambda: runner.run("no_database", at_once=True),
            "without": lambda: runner.run("no_database", at_once=True, options=WITHOUT_PLUGIN),
        },
        first=lambda: runner.run("no_database"),
    )
    imported = sorted({name for one in seen["with the plugin"] for name in one.imported})
    wall = _difference("a run that uses no database: more than without the plugin", seen, "wall", 0.030)
    cpu = _difference("the same in CPU time", seen, "cpu", None)
    return [Figure(wall.what, wall.value, wall.goal, wall.parts, imported), cpu]


def embedded(runner: Runner, migrations: Path, processes: int) -> list[Figure]:
    """The first test on the embedded server, beside the same body with pgdbm imported and no database."""

    def new() -> Seen:
        with tempfile.TemporaryDirectory() as empty:
            return runner.run("plugin", options=_EMBEDDED, cache=Path(empty), migrations=migrations)

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        with_cache = partial(runner.run, "plugin", cache=cache, migrations=migrations)
        try:
            seen = _alternate(
                "embedded server",
                processes,
                {
                    _NEW: new,
                    _COPIED: lambda: with_cache(options=_EMBEDDED),
                    _KEPT: lambda: with_cache(options=(*_EMBEDDED, "--pgdbm-keep-alive=5")),
                    _NONE: lambda: runner.run("no_server", options=WITHOUT_PLUGIN),
                },
            )
        finally:
            stop_kept(cache)
    what = "first test on an embedded server"
    return [
        _difference(f"{what}, {_NEW}", seen, "first_body", None, (_NEW, _NONE)),
        _difference(f"{what}, {_COPIED}", seen, "first_body", 0.350, (_COPIED, _NONE)),
        _difference(f"{what}, {_KEPT}", seen, "first_body", 0.100, (_KEPT, _NONE)),
        _difference(f"until the process has ended, {_COPIED}", seen, "wall", None, (_COPIED, _NONE)),
        _difference(f"until the process has ended, {_KEPT}", seen, "wall", None, (_KEPT, _NONE)),
    ]


def container(runner: Runner, migrations: Path, processes: int) -> list[Figure]:
    """From the container's first successful `SELECT 1` until the first test's body is over."""
    after, whole = [], []
    for turn in range(processes):
        print(f"container: run {turn + 1}", file=sys.stderr)
        with Watcher() as watcher:
            seen = runner.run("plugin", options=("--pgdbm-server=container", *_image()), migrations=migrations)
        after.append(seen.began + seen.first_body - watcher.answered)
        whole.append(seen.first_body)
    parts = {"from the start of pytest": statistics.median(whole)}
    what = "first test on a container: after its first successful `SELECT 1`"
    return [Figure(what, statistics.median(after), 1.0, parts)]


def _image() -> list[str]:
    """The image that this machine has, if it says so: the plugin's own settings do not reach the runs."""
    image = os.environ.get("PGDBM_IMAGE")
    return [f"--pgdbm-image={image}"] if image else []


_EMBEDDED = ("--pgdbm-server=embedded",)
_NEW = "cluster made anew"
_COPIED = "cluster cached"
_KEPT = "server kept"
_NONE = "no database"


def _alternate(
    what: str, processes: int, sides: dict[str, _Side], first: Callable[[], object] = lambda: None
) -> dict[str, list[Seen]]:
    """Runs the sides in turn; `first` is called before each turn."""
    seen: dict[str, list[Seen]] = defaultdict(list)
    for side in sides.values():
        side()  # warms the disk's cache and compiles what has not been compiled
    for turn in range(processes):
        print(f"{what}: run {turn + 1}", file=sys.stderr)
        first()
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            seen[name].append(sides[name]())
    return seen


def _difference(
    what: str, seen: dict[str, list[Seen]], measure: str, goal: float | None, sides: tuple[str, str] | None = None
) -> Figure:
    chosen = seen if sides is None else {name: seen[name] for name in sides}
    parts = {name: statistics.median(getattr(one, measure) for one in some) for name, some in chosen.items()}
    first, second = parts.values()
    return Figure(what, first - second, goal, parts)


def table(figures: list[Figure]) -> list[str]:
    """The figures as a Markdown table, in milliseconds."""
    rows = [f"| {one.what} | {one.value * 1e3:.0f} | {_parts(one)} |" for one in figures]
    return ["### Start-up (ms)", "", "| | difference | medians |", "|---|--:|---|", *rows, ""]


def _parts(figure: Figure) -> str:
    parts = [f"{name} {value * 1e3:.0f}" for name, value in figure.parts.items()]
    return ", ".join(parts + [f"imported {name}!" for name in figure.imported])


def goals(figures: list[Figure]) -> list[tuple[str, str, bool]]:
    """What is wanted, what was measured, whether it is met."""
    wanted = [one for one in figures if one.goal is not None]
    return [(f"{one.what}: at most {one.goal * 1e3:.0f} ms", f"{one.value * 1e3:.0f} ms", one.met) for one in wanted]


def plain(figures: list[Figure]) -> list[dict[str, object]]:
    """The figures as plain data."""
    return [asdict(one) for one in figures]
