"""The one command: measures, prints a Markdown report, and says which goals are met."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import connections, containers, long, migrations, modes, per_test, start_up
from benchmarks.facts import facts
from benchmarks.runs import Runner

PARTS = ("per-test", "modes", "start-up", "container", "connections", "long")


def main() -> int:
    """Measures what was asked for; 1 if a goal is not met."""
    chosen = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        services = {count: migrations.write(Path(folder), count) for count in (3, 30, 120)}
        runner = Runner(chosen.patience)
        found: dict[str, Any] = {"facts": facts(runner, services[3])}
        lines, goals = _measure(chosen, runner, services, found)
    found["facts"]["others"] = f"other processes took {runner.others:.0%} of the machine (median before each run)"
    report = "\n".join([*_heading(found["facts"]), *lines, *_goals(goals)])
    print(report)
    if chosen.output:
        chosen.output.write_text(report + "\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({**found, "goals": goals}, indent=1) + "\n")
    return 0 if all(met for _, _, met in goals) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one process a side and few tests: a look, no measure")
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="pytest processes a side (default: 9)")
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--patience", type=float, default=5, metavar="SECONDS", help="wait so long for a quiet machine (default: 5)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.runs = 1
    return chosen


def _parts(text: str) -> Sequence[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return parts


def _measure(
    chosen: argparse.Namespace, runner: Runner, services: dict[int, Path], found: dict[str, Any]
) -> tuple[list[str], list[tuple[str, str, bool]]]:
    lines: list[str] = []
    goals: list[tuple[str, str, bool]] = []
    figures = []
    if "start-up" in chosen.only:
        figures += start_up.no_database(runner, chosen.runs) + start_up.embedded(runner, services[3], chosen.runs)
    if "container" in chosen.only:
        if why := containers.engine():
            print(f"container: not measured, {why}", file=sys.stderr)
        else:
            figures += start_up.container(runner, services[3], chosen.runs)
    if figures:
        found["start_up"] = start_up.plain(figures)
        lines += start_up.table(figures)
        goals += start_up.goals(figures)
    if "connections" in chosen.only:
        counts = connections.measure(services[3], 50 if chosen.quick else 500)
        found["connections"] = connections.plain(counts)
        lines += connections.table(counts)
        goals += connections.goals(counts)
    if "per-test" in chosen.only:
        costs = per_test.measure(runner, services, per_test.QUICK if chosen.quick else per_test.FULL, chosen.runs)
        found["per_test"] = per_test.plain(costs)
        lines += per_test.tables(costs)
        goals += per_test.goals(costs)
    if "modes" in chosen.only:
        ways = modes.measure(runner, services, chosen.runs, quick=chosen.quick)
        found["modes"] = modes.plain(ways)
        lines += modes.table(ways)
        goals += modes.goals(ways)
    if "long" in chosen.only:
        longs = long.measure(runner, services, chosen.runs, quick=chosen.quick)
        found["long"] = long.plain(longs)
        lines += long.table(longs)
        goals += long.goals(longs)
    return lines, goals


def _heading(told: dict[str, str]) -> list[str]:
    where = f"Measured on {told['date']}: {told['machine']}; {told['python']}; {told['server']}."
    return [where, f"{told['packages']}; {told['others']}.", ""]


def _goals(goals: list[tuple[str, str, bool]]) -> list[str]:
    rows = [f"| {what} | {measured} | {'met' if met else 'NOT MET'} |" for what, measured, met in goals]
    return ["### Goals", "", "| wanted | measured | |", "|---|---|---|", *rows]


if __name__ == "__main__":
    sys.exit(main())
