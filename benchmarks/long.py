"""What many tests in one process come to: whether they stay as cheap as the first, and what share is the plugin's."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.runs import Runner, Seen, loop_options

_AROUND = 200
_MOST = 3


@dataclass(frozen=True)
class Long:
    """Milliseconds of a whole test near the beginning and at the end, and how much memory pytest took more by then.

    `share` is that of set-up and teardown in all the time.
    """

    what: str
    tests: int
    early: float
    late: float
    share: float
    megabytes: float

    @property
    def ratio(self) -> float:
        """What a late test costs, with an early one as the unit."""
        return self.late / self.early


def measure(runner: Runner, services: dict[int, Path], processes: int, *, quick: bool) -> list[Long]:
    """Processes of many tests in each kind of loop, and some over three services; at most three of each."""
    many, some = (400, 100) if quick else (5000, 1000)
    found: dict[str, list[Long]] = defaultdict(list)
    for turn in range(min(processes, _MOST)):
        for loop in ("session", "function"):
            print(f"long: {loop} loops, run {turn + 1}", file=sys.stderr)
            for what, suite, tests in (
                ("one service", "plugin", many),
                ("three services", "three_services", some // 3),
            ):
                options = loop_options(loop)
                seen = runner.run(suite, options=options, loop=loop, migrations=services[30], tests=tests)
                found[f"{what}, {loop} loops"].append(_long(f"{what}, {loop} loops", seen))
    # The machine may be slower for a while: the run in the middle.
    return [sorted(runs, key=lambda one: one.ratio)[len(runs) // 2] for runs in found.values()]


def _long(what: str, seen: Seen) -> Long:
    wholes = [later["over"] - test["over"] for test, later in zip(seen.tests, seen.tests[1:], strict=False)]
    start = min(50, len(wholes) // 4)
    early, late = (statistics.median(part) * 1e3 for part in (wholes[start : start + _AROUND], wholes[-_AROUND:]))
    ours = sum(test["setup"] + test["teardown"] for test in seen.tests[1:])
    megabytes = seen.tests[-1]["megabytes"] - seen.tests[start]["megabytes"]
    return Long(what, len(seen.tests), early, late, ours / sum(wholes), megabytes)


def table(found: list[Long]) -> list[str]:
    """A Markdown table."""
    rows = [
        f"| {one.what} | {one.tests} | {one.early:.1f} | {one.late:.1f} | {one.ratio:.2f} | {one.share:.0%}"
        f" | {one.megabytes:.0f} |"
        for one in found
    ]
    head = "| suite | tests | a test, from the 50th on | at the end | ratio | set-up and teardown | more memory (MB) |"
    return ["### Long runs (ms)", "", head, "|---|--:|--:|--:|--:|--:|--:|", *rows, ""]


def goals(found: list[Long]) -> list[tuple[str, str, bool]]:
    """The last tests cost what those near the beginning do."""
    return [
        (f"{one.what}: the last tests cost at most 1.1 of what the 50th does", f"{one.ratio:.2f}", one.ratio <= 1.1)
        for one in found
    ]


def plain(found: list[Long]) -> list[dict[str, object]]:
    """The figures as plain data."""
    return [asdict(one) for one in found]
