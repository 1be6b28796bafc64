"""Whoever is killed, and whenever: nothing is left of the run."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from keeper.runs import (
    ActorProcess,
    a_job,
    a_run,
    actors,
    keeper_of,
    kill_keeper,
    left_of,
    postmaster_of,
    servers_of,
    stays,
    wait_until,
    wait_until_gone,
)

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.records import Process
from pytest_pgdbm.keeper import holders, join, leave_run
from pytest_pgdbm.keeper.folder import make_folder
from pytest_pgdbm.servers.base import Place, new_record, record
from pytest_pgdbm.servers.leftovers import take_away


def test_when_all_holders_are_killed_everything_goes(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        one("join", "start")
        two("join", "start")
        one.kill()
        two.kill()
        wait_until_gone(run)


def test_when_the_only_holder_is_killed_while_the_server_starts_everything_goes(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join")
        actor.tell("start")
        wait_until(lambda: any("initdb" in words for words in left_of(run)))
        actor.kill()
        wait_until_gone(run)


def test_a_keeper_whose_answer_nobody_hears_does_its_work_all_the_same(tmp_path):
    """Who asked for the server was killed while it started; another process holds the run."""
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (asker, other):
        other("join")
        asker("join")
        asker.tell("start")
        wait_until(lambda: any("initdb" in words for words in left_of(run)))
        asker.kill()
        wait_until(lambda: any("postgres: checkpointer" in words for words in left_of(run)))
        assert stays(keeper_of, run)
        other.kill()
        wait_until_gone(run)


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_server(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        child = psutil.Process(actor("fork")["child"])
        actor.kill()
        wait_until_gone(run)
        assert child.is_running()
        child.kill()


def test_when_the_keeper_is_killed_the_server_stays_and_the_last_to_leave_clears_up(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run), ActorProcess(run)) as (one, two):
        one("join", "start")
        two("join", "start")
        kill_keeper(run)
        one("leave")
        assert stays(postmaster_of, run)
        two("leave")
        assert left_of(run) == []


def test_when_the_keeper_is_killed_the_controller_clears_up(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        kill_keeper(run)
        actor.kill()
        leave_run(run)
        assert left_of(run) == []


def test_when_the_keeper_is_killed_during_initdb_the_next_start_begins_anew(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join")
        actor.tell("start")
        wait_until(lambda: any("initdb" in words for words in left_of(run)))
        kill_keeper(run)
        heard = actor.hear()
        assert heard["type"] == "ServerFailed"
        assert heard["error"] == (
            "the keeper of the embedded server ended without an answer\n"
            "  to mend it: another server: --pgdbm-server=container or --pgdbm-url"
        )
        assert left_of(run) == [str(run.folder)]
        assert actor("start_anew")["port"]


@pytest.mark.parametrize("when", ["as it starts", "as it runs"])
def test_when_holders_and_keeper_are_killed_the_next_run_clears_up(tmp_path, when):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join")
        actor.tell("start")
        if when == "as it runs":
            actor.hear()
        else:
            wait_until(lambda: any("initdb" in words for words in left_of(run)))
        actor.process.send_signal(signal.SIGSTOP)
        kill_keeper(run)
        actor.kill()
        assert left_of(run) != []
        join(a_run(tmp_path)).leave()
        wait_until_gone(run, seconds=1)


def test_a_stopped_server_is_told_and_cleared(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        assert actor("server_death") == {"why": None}
        postmaster_of(run).kill()
        wait_until(lambda: actor("server_death")["why"] is not None)
        assert actor("server_death")["why"].startswith("the server ended with status -9\n")
        actor("leave")
        assert left_of(run) == []


def test_a_killed_server_leaves_no_shared_memory(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        data = actor("join", "start")["notes"]["data"]
        segment = Path(data, "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in system_v_segments()
        postmaster_of(run).kill()
        actor("leave")
    assert segment not in system_v_segments()


def test_shared_memory_whose_number_is_another_servers_by_now_stays(tmp_path):
    """As after the machine was started anew: the file of the dead server has a number that begins from none again."""
    with actors(ActorProcess(a_run(tmp_path))) as (actor,):
        living = Path(actor("join", "start")["notes"]["data"], "postmaster.pid").read_text().splitlines()
        for maker in (_ended_process(), int(living[0])):
            dead = tmp_path / f"dead-{maker}"
            (dead / "data").mkdir(parents=True)
            lines = [str(maker), str(dead / "data"), *living[2:]]
            (dead / "data" / "postmaster.pid").write_text("\n".join(lines))
            take_away(str(dead))
            assert not dead.exists()
            assert living[6].split()[1] in lasting_system_v_segments()
        actor("leave")


def _ended_process():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_killed_initdb_leaves_no_shared_memory(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join")
        actor.tell("start")
        files = wait_until(lambda: stopped_with_shared_memory(run))
        kill_keeper(run)
        actor.hear()
        actor("leave")
    wait_until(lambda: not any(os.path.exists(file) for file in files))


def test_sigterm_ends_the_server_but_not_the_folder_of_those_who_still_run(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        keeper_of(run).terminate()
        wait_until(lambda: left_of(run) == [str(run.folder)])
        actor("leave")
        assert left_of(run) == []


def test_the_server_goes_when_somebody_removes_the_folder(tmp_path):
    run = a_run(tmp_path)
    with actors(ActorProcess(run)) as (actor,):
        actor("join", "start")
        shutil.rmtree(run.folder)
        wait_until_gone(run)
        actor("leave")


def test_the_sweep_clears_folders_that_were_just_made_or_half_removed(tmp_path):
    bare, half = a_run(tmp_path).folder, a_run(tmp_path).folder
    make_folder(bare)
    ended = half.with_name(half.name + "-ended-0123")
    ended.mkdir()
    (ended / "result").touch()
    join(a_run(tmp_path)).leave()
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_leaves_what_is_not_proved_to_be_a_dead_run(tmp_path):
    uid = os.getuid()
    kept = [
        tmp_path / "pgdbm-notes",
        tmp_path / f"pgdbm-{uid}-mine",
        tmp_path / f"pgdbm-{uid}-0123456789",
        tmp_path / f"pgdbm-{uid}-0123456789-old",
        tmp_path / f"pgdbm-{uid + 1}-0123456789",
    ]
    for folder in kept:
        folder.mkdir(mode=0o700)
        (folder / "precious").touch()
    link = tmp_path / f"pgdbm-{uid}-9876543210"
    link.symlink_to(kept[2])
    alive = a_run(tmp_path)
    other = join(alive)
    join(a_run(tmp_path)).leave()
    assert all((folder / "precious").exists() for folder in kept)
    assert link.is_symlink()
    assert alive.folder.exists()
    other.leave()


def test_a_start_can_be_interrupted(tmp_path):
    """As Ctrl-C does: the exception comes while the answer is waited for."""

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    run = a_run(tmp_path)
    holding = join(run)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            holding.start(a_job(run))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: left_of(run) == [str(run.folder)])
    holding.leave()
    assert left_of(run) == []


def test_a_container_that_cannot_be_removed_keeps_its_record_for_the_next_run(tmp_path):
    """Its engine does not answer now; the folder is what the next run finds it by."""
    run = a_run(tmp_path)
    holding = join(run)
    new_record(run.folder)
    record(run.folder, Place("container", f"{run.id}@unix:///nowhere/docker.sock"))
    with pytest.raises(ServerFailed, match=r"/nowhere/docker\.sock"):
        holding.leave()
    assert run.folder.exists()
    other = join(a_run(tmp_path))
    assert run.folder.exists()
    other.leave()


def test_a_container_engine_that_does_not_answer_does_not_hinder_the_next_kind_of_server(tmp_path):
    run = a_run(tmp_path)
    job = a_job(run, kind="container")
    env = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    with actors(ActorProcess(run, job, env=env)) as (actor,):
        actor("join")
        assert "/nowhere/docker.sock" in actor.error("start_anew")["error"]
        actor("stop_server")
        assert "/nowhere/docker.sock" in actor.error("start_anew")["error"]
        actor("leave")
        assert left_of(run) == []


def test_where_starts_of_processes_cannot_be_read_a_lock_tells_who_lives(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from pytest_pgdbm.ground.records import Process\n"
        "from pytest_pgdbm.keeper.holders import Lease\n"
        "lease = Lease(Path(sys.argv[1]), Process(os.getpid(), None))\n"
        "lease.take()\nprint('taken', flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "taken\n"
        assert holders.anyone(tmp_path)
        holder.kill()
        holder.wait()
    assert not holders.anyone(tmp_path)
    lease = holders.Lease(tmp_path, Process(os.getpid(), None))
    lease.take()
    assert holders.anyone(tmp_path)
    lease.give_up()
    assert not holders.anyone(tmp_path)


def stopped_with_shared_memory(run):
    """Stops the run's server processes; lets them go on if they have no shared memory at this moment."""
    processes = servers_of(run)
    with suppress(psutil.NoSuchProcess):
        for process in processes:
            process.suspend()
    if files := shared_memory_of(run):
        return files
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    return None


def shared_memory_of(run):
    """The files of shared memory in /dev/shm that server processes of the run have open now."""
    files = set()
    for process in servers_of(run):
        with suppress(OSError), open(f"/proc/{process.pid}/maps") as maps:
            files |= set(re.findall(r"/dev/shm/PostgreSQL\.\d+$", maps.read(), re.MULTILINE))
    return files


def system_v_segments():
    with open("/proc/sysvipc/shm") as table:
        return {line.split()[1] for line in table.readlines()[1:]}


def lasting_system_v_segments():
    """Those that nobody has freed: one that is freed while it is used stays until then, with this bit and no key."""
    with open("/proc/sysvipc/shm") as table:
        fields = [line.split() for line in table.readlines()[1:]]
    return {number for _, number, mode, *_ in fields if not int(mode, 8) & 0o1000}
