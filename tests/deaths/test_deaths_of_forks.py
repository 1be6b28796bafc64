"""Tests that fork: what a child does or does not do, the run ends as without it."""

from __future__ import annotations

import os
import signal

import pytest
from deaths.scene import AFTER, BEFORE, Scene, counted, eventually, has_ended

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

FORKS = """
import os, pathlib, signal, sys, time, warnings

def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        return os.fork()

def child(pid):
    new = pathlib.Path(__file__).with_name("child.new")
    new.write_text(str(pid))
    new.rename(new.with_suffix(""))
"""

OUTLIVES = """
async def test_forks(users_db):
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    pid = fork()
    if pid == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    child(pid)
    await users_db.execute("insert into {{tables.users}} (email) values ('b')")
"""

ENDS = """
{kind}def test_forks(users_db):
    pid = fork()
    if pid == 0:
        {exit}
    child(pid)
    until = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < until, "the child did not end"
        time.sleep(0.02)
"""

# In a module that comes last: it sees what the child's end did to the parent.
STILL_THERE = """
async def test_still_there(users_db, pgdbm_pool):
    assert await pgdbm_pool.fetchval("select 1") == 1
"""


def child_of(scene: Scene) -> int:
    """The child's process."""
    (sign,) = eventually(lambda: scene.signs("child"), what=lambda: scene.output)  # type: ignore[misc]
    return int(sign.read_text())


@pytest.mark.parametrize("where", ["embedded", "url"])
def test_a_child_that_outlives_the_run_keeps_nothing(dying: Scene) -> None:
    output = dying.run(test=FORKS + BEFORE + OUTLIVES + AFTER)
    assert counted(output) == {"passed": 3}, output
    child = child_of(dying)
    try:
        dying.nothing_is_left()
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("where", ["embedded", "url"])
def test_a_child_that_outlives_a_killed_run_keeps_nothing(dying: Scene) -> None:
    hangs = OUTLIVES.replace("async def test_forks(users_db)", "async def test_forks(users_db, hang)") + "    hang()\n"
    dying.start(test=FORKS + hangs)
    dying.hanging()
    child = child_of(dying)
    try:
        dying.kill_all()
        dying.nothing_is_left()
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["", "async "], ids=["plain", "in a loop"])
@pytest.mark.parametrize("exits", ["os._exit(0)", "sys.exit(0)", "raise RuntimeError('in the child')"])
def test_a_child_that_ends(own_dying: Scene, exits: str, kind: str) -> None:
    output = own_dying.run(
        "-p", "no:warnings", test=FORKS + BEFORE + ENDS.format(kind=kind, exit=exits) + AFTER + STILL_THERE
    )
    assert own_dying.status == 0, output
    assert counted(output) == {"passed": 4}, output
    own_dying.nothing_is_left()
