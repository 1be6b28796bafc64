"""Whatever becomes of the server: the run ends in bounded time and says why; tests go on where there is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest
from deaths.clusters import Cluster
from deaths.scene import AFTER, BEFORE, HANGS, Scene, counted, eventually

WAITS = """
async def test_waits(users_db, wait_for):
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    wait_for("go")
    await users_db.execute("insert into {{tables.users}} (email) values ('b')")
"""

WAITS_AND_ENDS = """
async def test_waits(users_db, wait_for):
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    wait_for("go")
"""

MANY = """
import pytest

@pytest.mark.parametrize("n", range(300))
async def test_later(users_db, n):
    await users_db.execute("insert into {{tables.users}} (email) values ('b')")
"""

LOST = "E *LeaseLost: the schemas of test_it.py::test_waits were lost: *"
TERMINATED = "E *closed in the middle of operation: terminating connection due to administrator command"


def meanwhile(scene: Scene, happens: Callable[[], object], test: str, *args: str, seconds: float = 60) -> str:
    """Runs tests; what happens does so while one of them waits. Returns what was printed."""
    scene.start("--tb=short", *args, test=test)
    scene.hanging()
    happens()
    scene.tell("go")
    return scene.end(seconds)


def says(output: str, *lines: str) -> None:
    """Whether these lines are there, in any order."""
    matcher = pytest.LineMatcher(output.splitlines())
    for line in lines:
        matcher.fnmatch_lines([line])


def seconds_of(output: str) -> float:
    """How long pytest says that it took."""
    return float(output.splitlines()[-1].partition(" in ")[2].partition("s")[0])


def backend_of(cluster: Cluster, part: str) -> int:
    """The server process of the plugin's connection for this part of its work."""
    found = f"select pid from pg_stat_activity where application_name like 'pgdbm % {part}'"
    return int(eventually(lambda: cluster.ask(found))[0]["pid"])  # type: ignore[index]


def own_server(scene: Scene) -> psutil.Process:
    """The first process of the run's own server."""
    runs = [path.name.removeprefix("run-") for path in scene.signs("run-*")]
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())  # of a process that has ended just now, nothing
        if "/bin/postgres -D" in line and any(run in line for run in runs):
            return process
    raise AssertionError("the run has no server")


def crash(server: psutil.Process, pid: int | None = None) -> None:
    """Kills a server's first process, or another one; returns when all others have ended for that."""
    others = server.children()
    os.kill(pid or server.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(others, timeout=30)
    assert not left


def test_a_test_that_kills_its_own_backend_fails_alone(at_cluster: Scene) -> None:
    output = at_cluster.run(
        "--tb=short",
        test=BEFORE
        + """
async def test_kills(users_db):
    await users_db.execute("select pg_terminate_backend(pg_backend_pid())")
"""
        + AFTER,
    )
    says(output, TERMINATED)
    assert counted(output) == {"passed": 2, "failed": 1}, output
    at_cluster.nothing_is_left()


@pytest.mark.parametrize("part", ["admin", "pool"])
def test_connections_of_the_plugin_that_are_ended_cost_the_running_test_only(
    at_cluster: Scene, cluster: Cluster, part: str
) -> None:
    def end() -> None:
        cluster.ask(f"select pg_terminate_backend({backend_of(cluster, part)}, 5000)")

    output = meanwhile(at_cluster, end, BEFORE + WAITS + AFTER)
    if part == "admin":
        says(output, LOST)
        assert counted(output) == {"passed": 2, "failed": 1, "error": 1}, output
    else:
        says(output, TERMINATED)
        assert counted(output) == {"passed": 2, "failed": 1}, output
    at_cluster.nothing_is_left()


def test_a_backend_that_crashes_takes_all_connections_along_and_later_tests_go_on(
    at_cluster: Scene, cluster: Cluster
) -> None:
    def crash_within() -> None:
        crash(cluster.processes()[0], backend_of(cluster, "pool"))

    output = meanwhile(at_cluster, crash_within, BEFORE + WAITS + AFTER)
    says(output, LOST)
    assert counted(output) == {"passed": 2, "failed": 1, "error": 1}, output
    at_cluster.nothing_is_left()


def test_a_server_that_is_restarted_is_found_again(at_cluster: Scene, cluster: Cluster) -> None:
    def restart() -> None:
        cluster.crash()
        cluster.come_back()

    output = meanwhile(at_cluster, restart, BEFORE + WAITS + AFTER)
    says(output, LOST)
    assert counted(output) == {"passed": 2, "failed": 1, "error": 1}, output
    at_cluster.nothing_is_left()


def test_a_server_that_is_gone_for_good_is_named_and_waited_for_once(at_cluster: Scene, cluster: Cluster) -> None:
    output = meanwhile(at_cluster, cluster.crash, BEFORE + WAITS + MANY, "-q")
    says(
        output,
        LOST,
        f"the schemas of 'users', 'orders' could not be made: the server at {cluster.place} does not answer any more:"
        " *Connect call failed *",
    )
    assert counted(output) == {"passed": 1, "failed": 1, "error": 301}, output
    assert seconds_of(output) < 40
    assert "stays" not in output
    cluster.come_back()
    at_cluster.nothing_is_left()


def test_a_server_that_answers_nothing_is_named_and_waited_for_once(at_cluster: Scene, cluster: Cluster) -> None:
    output = meanwhile(at_cluster, cluster.freeze, BEFORE + WAITS_AND_ENDS + MANY, "-q", "-k", "not test_after")
    says(
        output,
        f"the schemas of 'users', 'orders' could not be made: the server at {cluster.place} does not answer any more:"
        " no answer within 10 seconds",
    )
    assert seconds_of(output) < 60
    cluster.thaw()
    at_cluster.nothing_is_left()


def test_the_end_of_the_runs_own_server_is_told_with_its_log(own_dying: Scene) -> None:
    output = meanwhile(own_dying, lambda: crash(own_server(own_dying)), BEFORE + WAITS + MANY, "-q")
    says(
        output,
        LOST,
        "the schemas of 'users', 'orders' could not be made: the server at 127.0.0.1:* does not answer any more:"
        " the server ended with status -9",
    )
    assert seconds_of(output) < 40
    own_dying.nothing_is_left()


def test_a_backend_of_the_runs_own_server_that_crashes_costs_the_running_test_only(own_dying: Scene) -> None:
    def crash_within() -> None:
        server = own_server(own_dying)
        crash(server, next(part.pid for part in server.children() if "checkpointer" in " ".join(part.cmdline())))

    output = meanwhile(own_dying, crash_within, BEFORE + WAITS + AFTER)
    says(output, LOST)
    assert counted(output) == {"passed": 2, "failed": 1, "error": 1}, output
    own_dying.nothing_is_left()


def test_the_plugins_first_connection_that_is_ended_is_told(at_cluster: Scene, cluster: Cluster) -> None:
    cluster.holding(
        "set allow_system_table_mods = on; alter view pg_catalog.pg_roles set (security_barrier = false)",
        lambda: _end_set_up(at_cluster, cluster),
    )
    output = at_cluster.end()
    says(output, "*ended the connection: *", "*see the server's log for who did that, and run the tests again*")
    assert counted(output) == {"error": 2}, output
    at_cluster.nothing_is_left()


def _end_set_up(scene: Scene, cluster: Cluster) -> None:
    scene.start(test=BEFORE + AFTER)
    cluster.ask(f"select pg_terminate_backend({backend_of(cluster, 'set-up')}, 5000)")


def test_a_sweep_whose_connection_is_ended_is_left_to_the_next_run(at_cluster: Scene, cluster: Cluster) -> None:
    at_cluster.start(test=BEFORE + HANGS)
    at_cluster.hanging()
    at_cluster.kill_all()
    (schema,) = (row[0] for row in cluster.ask("select nspname from pg_namespace where nspname ~ 'pgdbm.*users$'"))
    cluster.holding(f"lock table {schema}.users", lambda: _end_sweep(at_cluster, cluster))
    output = at_cluster.end()
    assert counted(output) == {"passed": 1}, output
    at_cluster.nothing_is_left()


def _end_sweep(scene: Scene, cluster: Cluster) -> None:
    scene.start(test=AFTER)
    cluster.ask(f"select pg_terminate_backend({backend_of(cluster, 'sweep')}, 5000)")
