"""Three overlapping runs at one URL that start and die at random: none sees a row of another."""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stress import servers
from benchmarks.stress.projects import Project, kill, left_at

NAME = "overlap"
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_SLOWEST = 8.0


@dataclass(frozen=True)
class Outcome:
    """What came of runs side by side: how many there were, `killed` of them, `failed` of the others."""

    runs: int
    killed: int
    failed: int
    foreign: int
    left: list[str]
    output: str

    @property
    def good(self) -> bool:
        """Whether no run saw rows of another, all that could end well did, and nothing is left."""
        return self.foreign == 0 and self.failed == 0 and not self.left and self.runs > self.killed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this kind."""
    parser.add_argument("--seconds", type=float, default=3600, metavar="S", help="default: 3600")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="default: 3")


def run(chosen: argparse.Namespace) -> tuple[list[str], bool]:
    """Runs it and returns its figures, and whether all went well."""
    outcome = stressed(chosen.seconds, chosen.at_once)
    lines = [] if outcome.good else [outcome.output[-8000:], *outcome.left]
    lines += [
        "| seconds | at once | runs | killed | failed | saw rows of others | left |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        f"| {chosen.seconds:g} | {chosen.at_once} | {outcome.runs} | {outcome.killed} | {outcome.failed} |"
        f" {outcome.foreign} | {len(outcome.left)} |",
    ]
    return lines, outcome.good


def stressed(seconds: float, at_once: int = 3) -> Outcome:
    """What came of so many seconds."""
    with tempfile.TemporaryDirectory(prefix="o") as folder, servers.started() as server:
        project = Project(Path(folder, "p"))
        until = time.monotonic() + seconds
        statuses: list[int | None] = []
        lanes = [threading.Thread(target=_lane, args=(project, server.url, until, statuses)) for _ in range(at_once)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        statuses.append(project.start(server.url).wait(120))  # sweeps
        schemas, databases = left_at(server.url, project.runs)
        killed = sum(status is None for status in statuses)
        failed = sum(status not in (None, 0) for status in statuses)
        output = (project.folder / "output").read_text(errors="replace")
        return Outcome(len(statuses), killed, failed, project.foreign, [*schemas, *databases], output)


def _lane(project: Project, url: str, until: float, statuses: list[int | None]) -> None:
    """One run after another; every other one is killed at a random moment, which is noted as None."""
    while time.monotonic() < until:
        process = project.start(url)
        if random.random() < 0.5:
            statuses.append(process.wait(120))
            continue
        time.sleep(random.uniform(0, _SLOWEST) * random.random())
        ended = process.poll()
        kill(process, random.choice(_SIGNALS))
        statuses.append(ended)
