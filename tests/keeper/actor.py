"""A process of a run, driven by lines on its standard input; answers each with a line of JSON.

The first line is the run and the job. A password goes over the pipe, never over the command line.
"""

import json
import os
import sys
import time
from pathlib import Path

from pytest_pgdbm.ground.errors import PgdbmError, ServerFailed
from pytest_pgdbm.ground.records import Process, Run
from pytest_pgdbm.keeper import join, kept, leave_run
from pytest_pgdbm.servers.base import Job


class Actor:
    def __init__(self, order):
        controller = order["controller"] and Process(*order["controller"])
        self.run = Run(id=order["run"], folder=Path(order["folder"]), controller=controller)
        self.job = Job.from_json(order["job"])
        self.place = order["place"]
        self.kept = None
        self.holding = None

    def join(self):
        self.holding = join(self.run)

    def _start(self):
        return vars(self.holding.start(self.job))

    def start(self):
        result, made = self.holding.once(self._start, timeout=30)
        return {**result, "made": made}

    def start_anew(self):
        return self._start()

    def fail(self):
        def make():
            raise ServerFailed("the first try failed", "try harder")

        self.holding.once(make, timeout=30)

    def take(self):
        self.kept = kept.take(Path(self.place["parent"]), self.place["key"], self.run, self.place["seconds"])
        return {"taken": self.kept is not None, "known": self.kept and self.kept.known}

    def start_kept(self):
        return vars(self.kept.start(self.job))

    def note(self):
        self.kept.note({"port": 12345, "password": "hunter2"})

    def break_job(self):
        self.job = Job.from_json({**self.job.to_json(), "installation": "/nowhere"})

    def end_kept(self):
        return [kept.end(one) for one in kept.seen(Path(self.place["parent"]))]

    def sweep(self):
        kept.sweep(Path(self.place["parent"]))

    def hang(self):
        """Starts the server and then never comes to an end, inside `once`."""

        def make():
            answer({"started": self._start()})
            time.sleep(600)

        self.holding.once(make, timeout=30)

    def fork(self):
        """A child that keeps every descriptor open and outlives this process."""
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        return {"child": child}

    def stop_server(self):
        self.holding.stop_server()

    def server_death(self):
        return {"why": self.holding.server_death()}

    def leave(self):
        self.holding.leave()

    def leave_run(self):
        leave_run(self.run)

    def churn(self):
        for _ in range(20):
            self.join()
            self.leave()


def answer(data):
    print(json.dumps(data), flush=True)


def main():
    actor = Actor(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        try:
            answer({"answer": getattr(actor, line.strip())()})
        except PgdbmError as error:
            answer({"error": str(error), "type": type(error).__name__})


main()
