"""The processes of a run meet, do once what is done once, and leave nothing behind."""

import os
import signal
import subprocess
import sys

import pytest
from keeper.runs import ActorProcess, a_job, a_run, actors, keeper_of, left_of, postmaster_of, stays

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.records import Process
from pytest_pgdbm.keeper import join, leave_run


def test_of_two_processes_one_starts_the_server_and_both_have_it(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        for actor in (one, two):
            actor("join")
            actor.tell("start")
        first, second = one.hear()["answer"], two.hear()["answer"]
        assert sorted([first.pop("made"), second.pop("made")]) == [False, True]
        assert first == second


def test_the_server_stays_while_one_of_two_holders_has_left_and_goes_with_the_last(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        one("join", "start")
        two("join", "start")
        one("leave")
        assert stays(postmaster_of, run)
        two("leave")
        assert left_of(run) == []


def test_two_runs_at_once_do_not_meet(tmp_path):
    runs = a_run(tmp_path), a_run(tmp_path)
    with actors(*map(ActorProcess, runs)) as (one, two):
        first, second = one("join", "start"), two("join", "start")
        assert first["made"]
        assert second["made"]
        assert first["port"] != second["port"]
        one("leave")
        assert left_of(runs[0]) == []
        assert stays(postmaster_of, runs[1])


def test_a_run_that_started_no_server_leaves_no_folder(tmp_path):
    run = a_run(tmp_path)
    join(run).leave()
    assert left_of(run) == []


def test_a_process_can_join_again_after_the_last_left(tmp_path):
    run = a_run(tmp_path)
    for _ in range(3):
        holding = join(run)
        assert holding.once(lambda: {"port": 1}, timeout=5) == ({"port": 1}, True)
        holding.leave()
    assert left_of(run) == []


def test_processes_that_come_and_go_at_once_do_not_hinder_each_other(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run), ActorProcess(run)) as all_of_them:
        for actor in all_of_them:
            actor.tell("churn")
        for actor in all_of_them:
            assert actor.hear() == {"answer": None}


def test_a_forked_child_does_not_leave_for_its_parent(tmp_path):
    run = a_run(tmp_path)
    holding = join(run)
    child = os.fork()
    if child == 0:
        holding.leave()
        os._exit(0)
    os.waitpid(child, 0)
    assert run.folder.exists()
    holding.leave()
    assert left_of(run) == []


def test_the_controller_keeps_the_run_between_two_workers(tmp_path):
    run = a_run(tmp_path, controller=Process.this())
    with actors(ActorProcess(run), ActorProcess(run)) as (worker, next_worker):
        port = worker("join", "start")["port"]
        worker("leave")
        worker.kill()
        assert next_worker("join", "start")["port"] == port
        next_worker("leave")
        assert stays(postmaster_of, run)
        leave_run(run)
        assert left_of(run) == []


def test_leaving_a_run_that_nobody_joined_does_nothing(tmp_path):
    leave_run(a_run(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_shared_with_its_text(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        one("join")
        two("join")
        text = "the first try failed\n  to mend it: try harder"
        assert one.error("fail") == {"error": text, "type": "ServerFailed"}
        assert two.error("start") == {"error": text, "type": "SharedFailure"}
        assert one.error("start") == {"error": text, "type": "SharedFailure"}
        for actor in (one, two):
            actor("leave")


def test_a_maker_that_is_killed_half_way_is_followed_by_another(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        two("join")
        one("join")
        one.tell("hang")
        old = one.hear()["started"]
        two.tell("start")
        one.kill()
        new = two.hear()["answer"]
        assert new["made"]
        assert new["notes"]["data"] != old["notes"]["data"]
        assert not os.path.exists(old["notes"]["data"])


def test_an_error_that_is_no_failure_of_the_server_is_not_shared(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    holding = join(a_run(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        holding.once(interrupted, timeout=1)
    assert holding.once(lambda: {}, timeout=1) == ({}, True)
    holding.leave()


def test_waiting_for_another_process_ends_with_an_error(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (other,):
        other("join")
        other.tell("hang")
        other.hear()
        holding = join(run)
        with pytest.raises(ServerFailed) as failed:
            holding.once(dict, timeout=0.1)
        holding.leave()
    assert str(failed.value) == (
        "another process of this run was still starting the server after 0.1 s\n"
        "  to mend it: see what it waits for; an image that must be pulled can be pulled before the run"
    )


def test_what_is_shared_can_be_read_by_its_user_alone(tmp_path):
    run = a_run(tmp_path)
    before = os.umask(0)
    try:
        holding = join(run)
        holding.once(lambda: {"password": "secret"}, timeout=1)
        modes = {path: path.stat().st_mode & 0o077 for path in run.folder.rglob("*")}
    finally:
        os.umask(before)
        holding.leave()
    assert set(modes.values()) == {0}
    assert len(modes) > 3


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    run = a_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.folder.symlink_to(elsewhere)
    with pytest.raises(ServerFailed) as failed:
        join(run)
    assert str(failed.value) == (
        f"the run's folder {run.folder} cannot be used: it is not a folder\n"
        "  to mend it: remove it, or set TMPDIR to a folder of your own"
    )
    assert list(elsewhere.iterdir()) == []
    run.folder.unlink()


def test_a_folder_that_others_can_write_in_is_refused(tmp_path):
    run = a_run(tmp_path)
    run.folder.mkdir()
    run.folder.chmod(0o777)
    with pytest.raises(ServerFailed, match=r"it can be written by others \(mode 777\)"):
        join(run)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of another user's")
def test_a_folder_of_another_user_is_refused(tmp_path):
    run = a_run(tmp_path)
    run.folder.mkdir(mode=0o700)
    os.chown(run.folder, 1, 1)
    with pytest.raises(ServerFailed, match=r"it belongs to another user \(1\)"):
        join(run)


def test_a_missing_parent_folder_is_told(tmp_path):
    run = a_run(tmp_path / "nowhere")
    with pytest.raises(ServerFailed) as failed:
        join(run)
    assert str(failed.value) == (
        f"the run's folder {run.folder} could not be made: No such file or directory\n"
        "  to mend it: set TMPDIR to a folder that exists and can be written"
    )


def test_a_server_can_be_stopped_and_another_one_started_in_the_same_run(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start", "stop_server")
        assert [path for path in left_of(run) if path != str(run.folder)] == []
        assert actor("start_anew")["port"]


def test_a_start_that_fails_leaves_a_keeper_for_the_folder_alone_and_says_why(tmp_path):
    run = a_run(tmp_path)
    holding = join(run)
    job = a_job(run, installation=None)
    broken = type(job).from_json({**job.to_json(), "installation": str(tmp_path)})
    with pytest.raises(ServerFailed) as failed:
        holding.start(broken)
    assert failed.value.why == f"{tmp_path} has no postgres and no initdb"
    assert left_of(run) == [f"{keeper_of(run).pid} {' '.join(keeper_of(run).cmdline())}", str(run.folder)]
    assert holding.start(job).port
    holding.leave()
    assert left_of(run) == []


def test_the_keeper_shows_what_it_is_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PGDBM_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        keeper = keeper_of(run)
        shown = " ".join([*keeper.cmdline(), *postmaster_of(run).cmdline()])
        assert actor.job.admin.password not in shown
        assert [name for name in keeper.environ() if name.startswith(("PG", "PYTHON"))] == []
        assert keeper.cwd() == "/"
        assert not any(actor.job.admin.password in path.read_text() for path in run.folder.iterdir() if path.is_file())
        assert os.getsid(keeper.pid) != os.getsid(0)


def test_the_keeper_minds_neither_ctrl_c_nor_a_closed_terminal(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        keeper = keeper_of(run)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            keeper.send_signal(number)
        assert stays(keeper_of, run)
        actor("leave")
        assert left_of(run) == []


def test_the_keeper_loads_nothing_that_an_embedded_server_does_not_need():
    code = "import sys, pytest_pgdbm.keeper.process, pytest_pgdbm.servers.embedded; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"asyncpg", "pgdbm", "docker", "testcontainers", "asyncio", "filelock", "pytest"} & set(
        loaded.stdout.split()
    ) == set()
