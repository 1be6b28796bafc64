"""Runs that are killed at random moments, on servers of their own and at a URL, beside one that lives all the time."""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stress import decoys, servers
from benchmarks.stress.projects import LONG, TESTS, Project, kill, left_at

NAME = "kills"
SECONDS_TO_VANISH = 10
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Outcome:
    """What came of runs that were killed.

    `left` of each kind of thing after the sweep, with names; `harmed` is what the run printed that lived all the time,
    if it did not end well.
    """

    runs: int
    ended: int
    left: dict[str, list[str]]
    decoys_changed: bool
    harmed: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing is left, and nobody was hurt."""
        return not any(self.left.values()) and not self.decoys_changed and not self.harmed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this kind."""
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="half of them at a URL; default: 1000")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument(
        "--seed", type=int, default=None, metavar="N", help="of the moments; default: another each time"
    )


def run(chosen: argparse.Namespace) -> tuple[list[str], bool]:
    """Runs it and returns its figures, and whether all went well."""
    outcome = stressed(chosen.runs, chosen.at_once, chosen.seed)
    names = list(outcome.left)
    lines = [f"{name} left: {each}" for name in names for each in outcome.left[name]]
    lines += [outcome.harmed] if outcome.harmed else []
    lines += [
        f"| runs | ended before | {' | '.join(f'{name} left' for name in names)} | decoys changed | live harmed | s |",
        "|" + "--:|" * (len(names) + 5),
        f"| {outcome.runs} | {outcome.ended} | {' | '.join(str(len(outcome.left[name])) for name in names)}"
        f" | {outcome.decoys_changed:d} | {bool(outcome.harmed):d} | {outcome.seconds:.0f} |",
    ]
    return lines, outcome.good


def stressed(runs: int, at_once: int = 2, seed: int | None = None) -> Outcome:
    """What came of so many runs."""
    chance = random.Random(seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="k") as folder, servers.started() as server:
        Path(folder).chmod(0o755)
        decoys.make(server.url)
        before = decoys.state(server.url, [])
        project, live = Project(Path(folder, "p")), Project(Path(folder, "live"), TESTS + LONG)
        alive = live.start(server.url)
        try:
            whole = max(_timed(project, url) for url in (None, server.url))
            plans = [
                (server.url if n % 2 else None, chance.uniform(0, 1.2 * whole), chance.choice(_SIGNALS))
                for n in range(runs)
            ]
            with ThreadPoolExecutor(at_once) as pool:
                ended = sum(pool.map(lambda plan: _killed(project, *plan), plans))
            _timed(project, server.url)  # sweeps
            _timed(project, None)
            (live.folder / "stop").touch()
            well = alive.wait(60) == 0 and live.foreign == 0 and project.foreign == 0
            harmed = (
                "" if well else (live.folder / "output").read_text(errors="replace")[-8000:] or "it saw rows of others"
            )
        finally:
            kill(alive)
        left = _left(project, server.url)
        changed = decoys.state(server.url, left["schemas"]) != before
        return Outcome(runs, ended, left, changed, harmed, time.monotonic() - began)


def _timed(project: Project, url: str | None) -> float:
    """How long a run takes that nobody kills."""
    began = time.monotonic()
    status = project.start(url).wait(120)
    if status != 0:
        raise RuntimeError((project.folder / "output").read_text()[-4000:])
    return time.monotonic() - began


def _killed(project: Project, url: str | None, seconds: float, number: int) -> bool:
    """Whether the run had ended when it was to be killed."""
    process = project.start(url)
    time.sleep(seconds)
    ended = process.poll() is not None
    kill(process, number)
    return ended


def _left(project: Project, url: str) -> dict[str, list[str]]:
    until = time.monotonic() + SECONDS_TO_VANISH
    while (project.processes() or project.directories()) and time.monotonic() < until:
        time.sleep(0.2)
    schemas, databases = left_at(url, project.runs)
    return {
        "processes": project.processes(),
        "directories": project.directories(),
        "schemas": schemas,
        "databases": databases,
    }
