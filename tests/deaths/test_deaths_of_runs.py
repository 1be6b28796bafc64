"""However a run ends: in bounded time, with a message that names the cause, and nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from deaths.scene import AFTER, BEFORE, HANGS, Scene, counted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals")

HANGS_IN_SET_UP = """
import pytest

@pytest.fixture
def slow(users_db, hang):
    hang()

def test_hangs(slow):
    pass
"""

HANGS_IN_THE_PLUGIN = """
def test_hangs(users_db, hanging_db):
    pass
"""

HANGS_AT_ITS_END = """
import pytest

@pytest.fixture
def slow_to_end(users_db, hang):
    yield
    hang()

def test_hangs(slow_to_end, wait_for):
    wait_for("never")
"""

HANGS_IN_A_STATEMENT = """
async def test_hangs(users_db):
    await users_db.execute("select pg_sleep(600)")
"""

HANGS_IN_ITS_LOOP = """
import asyncio

async def test_hangs(users_db):
    async with users_db.transaction() as db:
        await db.execute("insert into {{tables.users}} (email) values ('a')")
        await asyncio.sleep(600)
"""

FAILS = """
async def test_fails(users_db):
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    assert not "this"
"""

EXITS = """
import pytest

async def test_exits(users_db):
    pytest.exit("enough of this")
"""

KILLS_ITSELF = """
import os, signal

async def test_kills_itself(users_db, pgdbm_database):
    await pgdbm_database("users")
    os.kill(os.getpid(), signal.SIGKILL)
"""

CRASHES = """
import os

async def test_crashes(users_db):
    os.abort()
"""


def act(*numbers: int) -> Callable[[Scene], None]:
    """Waits until a test hangs and sends the first signal, the next one once something hangs again, and so on."""

    def go(scene: Scene) -> None:
        for number in numbers:
            for pid in scene.hanging():
                (scene.project.path / f"hangs-{pid}").unlink()
            scene.signal(number)

    return go


NOTHING = act()
EMBEDDED, URL = "embedded", "url"


@dataclass(frozen=True)
class Death:
    """A way to end a run.

    `test` is what its tests are after one that passes and before one that does. `says` are lines of the output,
    `counts` what pytest has counted; a run whose process is killed says and counts nothing. `where` it is done: where
    the end of a run has to do with the server, on both kinds. A `variant` of another one is for the nightly run.
    """

    name: str
    test: str
    args: tuple[str, ...] = ()
    act: Callable[[Scene], None] = NOTHING
    status: int = 0
    says: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    where: tuple[str, ...] = (EMBEDDED, URL)
    variant: bool = False


EACH = ("-n", "2", "--dist=each")
"""Two workers, each with all tests."""

INTERRUPTED = "!* KeyboardInterrupt *!"
TIMED_OUT = "*Failed: Timeout (>2.0s) from pytest-timeout."


def timed(test: str, method: str) -> str:
    """The test with so much time for it and its set-up."""
    mark = f'import pytest\n\n@pytest.mark.timeout(2, method="{method}")'
    return re.sub(r"^(async )?def test_hangs", rf"{mark}\n\g<0>", test, flags=re.MULTILINE)


DEATHS = (
    Death("SIGKILL", HANGS, act=act(signal.SIGKILL), status=-9),
    Death("SIGKILL, two workers", HANGS, EACH, act(signal.SIGKILL), -9),
    Death("SIGKILL in fixture set-up", HANGS_IN_THE_PLUGIN, act=act(signal.SIGKILL), status=-9, variant=True),
    Death("SIGTERM", HANGS, act=act(signal.SIGTERM), status=-15),
    Death("SIGTERM, two workers", HANGS, EACH, act(signal.SIGTERM), -15, where=(EMBEDDED,), variant=True),
    Death("Ctrl-C", HANGS, (), act(signal.SIGINT), 2, (INTERRUPTED,), {"passed": 1}),
    Death("Ctrl-C, two workers", HANGS, EACH, act(signal.SIGINT), 2, (INTERRUPTED,)),
    Death("two Ctrl-C", HANGS_AT_ITS_END, (), act(signal.SIGINT, signal.SIGINT), -2, ("*KeyboardInterrupt*",)),
    Death("Ctrl-C in set-up", HANGS_IN_SET_UP, (), act(signal.SIGINT), 2, (INTERRUPTED,), {"passed": 1}),
    Death(
        "Ctrl-C while the plugin builds", HANGS_IN_THE_PLUGIN, (), act(signal.SIGINT), 2, (INTERRUPTED,), variant=True
    ),
    Death(
        "a worker that is killed",
        KILLS_ITSELF,
        ("-n", "1"),
        status=1,
        says=("*worker 'gw0' crashed while running 'test_it.py::test_kills_itself'",),
        counts={"passed": 2, "failed": 1},
    ),
    Death(
        "a worker that crashes",
        CRASHES,
        ("-n", "1"),
        status=1,
        says=("*worker 'gw0' crashed while running 'test_it.py::test_crashes'",),
        counts={"passed": 2, "failed": 1},
        where=(EMBEDDED,),
    ),
    Death("-x", FAILS, ("-x",), status=1, says=("!* stopping after 1 failures !*",), counts={"passed": 1, "failed": 1}),
    Death("--maxfail", FAILS, ("--maxfail=1", *EACH), status=2, says=("!* stopping after 1 failures !*",)),
    Death("pytest.exit", EXITS, status=2, says=("!* _pytest.outcomes.Exit: enough of this !*",), counts={"passed": 1}),
    Death(
        "pytest.exit, two workers",
        EXITS,
        EACH,
        status=2,
        says=("!* received keyboard-interrupt !*",),
        where=(EMBEDDED,),
    ),
    *(
        Death(
            f"pytest-timeout by signal, {when}",
            timed(test, "signal"),
            (),
            act(),
            1,
            (TIMED_OUT,),
            counts,
            where,
            when != "in a test",
        )
        for when, test, counts, where in (
            ("in a test", HANGS, {"passed": 2, "failed": 1}, (EMBEDDED,)),
            ("in a statement", HANGS_IN_A_STATEMENT, {"passed": 2, "failed": 1}, (URL,)),
            ("in a transaction", HANGS_IN_ITS_LOOP, {"passed": 2, "failed": 1}, (URL,)),
            ("in set-up", HANGS_IN_SET_UP, {"passed": 2, "error": 1}, (EMBEDDED,)),
            ("while the plugin builds", HANGS_IN_THE_PLUGIN, {"passed": 2, "error": 1}, (EMBEDDED, URL)),
        )
    ),
    *(
        Death(
            f"pytest-timeout by thread, {when}",
            timed(test, "thread"),
            (),
            act(),
            1,
            ("+* Timeout +*",),
            {},
            where,
            when != "in a test",
        )
        for when, test, where in (
            ("in a test", HANGS, (EMBEDDED,)),
            ("in a statement", HANGS_IN_A_STATEMENT, (URL,)),
            ("while the plugin builds", HANGS_IN_THE_PLUGIN, (EMBEDDED, URL)),
        )
    ),
    Death(
        "pytest-timeout by thread, in a worker",
        timed(HANGS, "thread"),
        ("-n", "1"),
        status=1,
        says=("*worker 'gw0' crashed while running 'test_it.py::test_hangs'",),
        counts={"passed": 2, "failed": 1},
    ),
)


def chosen() -> list[tuple[Death, str]]:
    """Each death once, on one kind of server and the other in turn; with DEATHS=all on all that it names."""
    if os.environ.get("DEATHS") == "all":
        return [(death, where) for death in DEATHS for where in death.where]
    each = [death for death in DEATHS if not death.variant]
    return [(death, death.where[number % len(death.where)]) for number, death in enumerate(each)]


@pytest.mark.parametrize(
    ("death", "where"), [pytest.param(death, where, id=f"{death.name}, {where}") for death, where in chosen()]
)
def test_a_run_that_ends_by(death: Death, dying: Scene) -> None:
    dying.start(*death.args, test=BEFORE + death.test + AFTER)
    death.act(dying)
    output = dying.end(30)
    assert dying.status == death.status, output
    pytest.LineMatcher(output.splitlines()).fnmatch_lines(list(death.says))
    assert not death.counts or counted(output) == death.counts, output
    dying.nothing_is_left()
