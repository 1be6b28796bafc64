"""Runs for tests: real processes that take part in them, and a look at what is left of them."""

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import pytest_pgdbm
from pytest_pgdbm.ground.endpoint import Login
from pytest_pgdbm.ground.names import new_run
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.servers.base import Job
from pytest_pgdbm.servers.installations import find_installations
from pytest_pgdbm.servers.scram import verifier

ACTOR = Path(__file__).with_name("actor.py")
BOUND = 10.0
"""The seconds after which nothing may be left of a run that was killed."""


def wait_until(is_so, seconds=BOUND):
    """Returns what is_so() gives, as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < until, f"not so after {seconds} s"
        time.sleep(0.02)
    return found


def stays(process_of, run, seconds=0.4):
    """Whether the run keeps this process for so long: a few looks of the keeper at its holders."""
    first = process_of(run)
    time.sleep(seconds)
    return process_of(run) == first


def wait_until_gone(run, seconds=BOUND):
    until = time.monotonic() + seconds
    while left := left_of(run):
        assert time.monotonic() < until, left
        time.sleep(0.02)


def a_run(parent, uid=None, **more):
    run = new_run()
    return Run(id=run, folder=Path(parent, f"pgdbm-{os.getuid() if uid is None else uid}-{run}"), **more)


def a_job(run, **changes):
    installation = changes.pop("installation", None) or next(find_installations())
    admin = Login("boss", secrets.token_hex(8))
    job = Job(
        run=run.id,
        kind="embedded",
        folder=str(run.folder),
        admin=admin,
        verifier=verifier(admin.password),
        installation=str(installation.bindir),
        version=installation.version,
    )
    return Job.from_json({**job.to_json(), **changes})


class ActorProcess:
    """A process that takes part in a run."""

    def __init__(self, run, job=None, *, prefix=(), python=sys.executable, env=None, place=None):
        self.run = run
        self.job = job or a_job(run)
        self.process = subprocess.Popen(
            [*prefix, python, "-W", "error", str(ACTOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**(os.environ if env is None else env), "PYTHONPATH": os.pathsep.join(packages())},
            cwd="/",
            text=True,
        )
        controller = run.controller and [run.controller.pid, run.controller.started]
        order = {"run": run.id, "folder": str(run.folder), "controller": controller, "place": place}
        self.tell(json.dumps({**order, "job": self.job.to_json()}))

    @property
    def pid(self):
        return self.process.pid

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def error(self, command):
        self.tell(command)
        return self.hear()

    def __call__(self, *commands):
        for command in commands:
            heard = self.error(command)
            assert "error" not in heard, heard["error"]
        return heard["answer"]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def actors(*made):
    try:
        yield made
    finally:
        for actor in made:
            actor.close()
        for run in {actor.run.id: actor.run for actor in made}.values():
            wait_until_gone(run)


def packages():
    """What an interpreter must be told to find the plugin and what it needs."""
    import filelock

    return [str(Path(at.__file__).parent.parent) for at in (pytest_pgdbm, filelock)]


def left_of(run):
    """What there is of the run on this machine: processes and paths."""
    processes = [f"{p.pid} {_words(p)}" for p in psutil.process_iter() if _is_of(run, p)]
    places = {run.folder.parent, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp")}
    return processes + [str(path) for place in places for path in place.glob(f"*{run.id}*")]


def keeper_of(run):
    """The keeper's process; raises StopIteration if there is none."""
    return next(p for p in psutil.process_iter() if f"pytest-pgdbm keeper {run.id}" in _words(p))


def kill_keeper(run):
    """Kills the keeper, and waits until it is gone: what it holds is held until then."""
    keeper = keeper_of(run)
    keeper.kill()
    wait_until(lambda: not _words(keeper))


def postmaster_of(run):
    """The server's main process; raises StopIteration if there is none."""
    return next(p for p in psutil.process_iter() if _is_of(run, p) and "/bin/postgres -D" in _words(p))


def servers_of(run):
    """The processes of `postgres` and of `initdb`'s servers."""
    return [p for p in psutil.process_iter() if _is_of(run, p) and p.name() == "postgres"]


def _is_of(run, process):
    try:
        return run.id in _words(process) or run.id in process.cwd()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _words(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # It ended meanwhile, or is a zombie.
        return ""


def needs_root():
    return pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def other_user():
    """Somebody who is neither root nor the one whom a server of root's runs as."""
    return pwd.getpwnam("daemon").pw_uid


def as_user(uid):
    return ("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups")


def common_python():
    """An interpreter that other users can run; root's own may lie under a folder of root's alone."""
    for program in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if program and _is_usable(program):
            return program
    pytest.skip("this machine has no Python 3.10 or later that other users than root can run")


def _is_usable(program):
    # It starts itself once more, as the keeper is started.
    start_itself = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    old_enough = "import sys; assert sys.version_info >= (3, 10)"
    command = [*as_user(other_user()), program, "-c", start_itself, old_enough]
    return subprocess.run(command, stderr=subprocess.DEVNULL, cwd="/").returncode == 0
