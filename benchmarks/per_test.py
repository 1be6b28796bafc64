"""What a test costs: with the plugin, without isolation, as a transaction that is rolled back, by hand with pgdbm."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.runs import Runner, Seen, loop_options

SIDES = {
    "plugin": "plugin",
    "no_isolation": "no isolation",
    "rollback": "`BEGIN`/`ROLLBACK`",
    "by_hand": "by hand with pgdbm",
}
LOOPS = ("session", "function")


@dataclass(frozen=True)
class Size:
    """A service's number of migrations, and over how many tests in a process it is measured; fewer by hand."""

    migrations: int
    tests: int
    tests_by_hand: int


FULL = (Size(3, 200, 60), Size(30, 200, 20), Size(120, 200, 4))
QUICK = (Size(3, 40, 20), Size(30, 40, 8), Size(120, 40, 3))


@dataclass(frozen=True)
class Cost:
    """Milliseconds a test: medians over the processes. `whole` is from the end of one test to the end of the next."""

    migrations: int
    loop: str
    side: str
    setup: float
    body: float
    teardown: float
    whole: float
    lowest: float
    highest: float


def measure(runner: Runner, services: dict[int, Path], sizes: tuple[Size, ...], processes: int) -> list[Cost]:
    """All sides in both loops, one after the other, then all again, in the opposite order every second time."""
    seen: dict[tuple[int, str, str], list[Seen]] = defaultdict(list)
    for turn in range(processes):
        for size in sizes:
            print(f"per test: {size.migrations} migrations, run {turn + 1}", file=sys.stderr)
            for loop in LOOPS:
                for side in list(SIDES)[:: -1 if turn % 2 else 1]:
                    tests = size.tests_by_hand if side == "by_hand" else size.tests
                    one = _run(runner, side, loop, services[size.migrations], tests)
                    seen[size.migrations, loop, side].append(one)
    return [_cost(*key, all_seen) for key, all_seen in sorted(seen.items(), key=_order)]


def _run(runner: Runner, side: str, loop: str, migrations: Path, tests: int) -> Seen:
    # The first test starts the server and is not counted.
    return runner.run(side, options=loop_options(loop), loop=loop, migrations=migrations, tests=tests + 1)


def _order(item: tuple[tuple[int, str, str], list[Seen]]) -> tuple[int, int, int]:
    migrations, loop, side = item[0]
    return LOOPS.index(loop), migrations, list(SIDES).index(side)


def _cost(migrations: int, loop: str, side: str, seen: list[Seen]) -> Cost:
    wholes = [one.whole * 1e3 for one in seen]
    setup, body, teardown = (
        statistics.median(one.phases[phase] * 1e3 for one in seen) for phase in ("setup", "call", "teardown")
    )
    whole = statistics.median(wholes)
    return Cost(migrations, loop, side, setup, body, teardown, whole, min(wholes), max(wholes))


def tables(costs: list[Cost]) -> list[str]:
    """A Markdown table for each kind of loop."""
    lines = []
    for loop in LOOPS:
        lines += [
            f"### Per test, {loop}-scoped loops (ms)",
            "",
            "| migrations | side | set-up | body | teardown | whole test | lowest to highest |",
            "|--:|---|--:|--:|--:|--:|--:|",
            *(_row(cost) for cost in costs if cost.loop == loop),
            "",
        ]
    return lines


def _row(cost: Cost) -> str:
    parts = " | ".join(f"{value:.1f}" for value in (cost.setup, cost.body, cost.teardown, cost.whole))
    return f"| {cost.migrations} | {SIDES[cost.side]} | {parts} | {cost.lowest:.1f} to {cost.highest:.1f} |"


def goals(costs: list[Cost]) -> list[tuple[str, str, bool]]:
    """What a test may cost at most: what, the figures, whether it is met."""
    whole = {(cost.migrations, cost.loop, cost.side): cost.whole for cost in costs}
    around = {(cost.migrations, cost.loop): cost.setup + cost.teardown for cost in costs if cost.side == "plugin"}
    few, usual, many = sorted({cost.migrations for cost in costs})
    ours, bare = whole[usual, "session", "plugin"], whole[usual, "session", "no_isolation"]
    small, large = whole[few, "session", "plugin"], whole[many, "session", "plugin"]
    found = [
        _at_most(f"set-up and teardown with {usual} migrations, session loops", around[usual, "session"], 0.6),
        _at_most(f"whole test, {usual} migrations, session loops: a tenth more than no isolation", ours, bare * 1.1),
        _at_most(f"whole test, {usual} migrations, function loops", whole[usual, "function", "plugin"], 5.5),
        _at_most(f"whole test, {many} migrations, session loops: a fifth more than with {few}", large, small * 1.2),
    ]
    for (migrations, loop, side), ours in whole.items():
        if side == "plugin":
            hand = whole[migrations, loop, "by_hand"]
            what = f"per test with {migrations} migrations, {loop} loops: no more than by hand"
            found.append((what, f"{ours:.1f} ms, by hand {hand:.1f} ms", ours <= hand))
    return found


def _at_most(what: str, ours: float, goal: float) -> tuple[str, str, bool]:
    return f"{what}: at most {goal:.1f} ms", f"{ours:.1f} ms", ours <= goal


def plain(costs: list[Cost]) -> list[dict[str, object]]:
    """The figures as plain data."""
    return [asdict(cost) for cost in costs]
