"""A kept server outlives its run, serves one run at a time, and goes when nobody has come for it."""

import os
import stat
import time
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
    stays,
    wait_until,
)

from pytest_pgdbm.ground.records import Process
from pytest_pgdbm.keeper import kept, leave_run

KNOWN = {"port": 12345, "password": "hunter2"}


class Place:
    """Where a kept server lies, and runs that may have it."""

    def __init__(self, folder):
        self.folder = folder
        self.server = a_run(folder / "cache")

    def run(self, seconds=60.0, **more):
        """A process of a new run, which has joined it."""
        place = {"parent": str(self.server.folder.parent), "key": self.server.id, "seconds": seconds}
        run = more.pop("run", None) or a_run(self.folder)
        return ActorProcess(run, a_job(run, **more), place=place)

    def left(self):
        return left_of(self.server)

    def clear(self):
        for one in kept.seen(self.server.folder.parent):
            kept.end(one)
        kept.sweep(self.server.folder.parent)
        wait_until(lambda: self.left() == [])


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.clear()


def has_ended(process):
    """Whether it has; nobody may have looked at its end yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def keep(actor):
    """Has the run start the server and say that it is to be kept."""
    assert actor("join", "take") == {"taken": True, "known": None}
    started = actor("start_kept")
    actor("note")
    return started


def test_it_outlives_its_run_and_the_next_one_has_it(place):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        server = postmaster_of(place.server)
        one("leave")
        assert left_of(one.run) == []
        assert stays(postmaster_of, place.server)
        assert two("join", "take") == {"taken": True, "known": KNOWN}
        assert postmaster_of(place.server) == server


@pytest.mark.parametrize("how", ["leave", "kill"])
def test_one_run_at_a_time_has_it(place, how):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        assert two("join", "take") == {"taken": False, "known": None}
        one("leave") if how == "leave" else one.kill()
        assert two("take") == {"taken": True, "known": KNOWN}


def test_of_runs_that_come_at_once_one_has_it(place):
    with actors(*(place.run() for _ in range(4))) as runs:
        for actor in runs:
            actor("join")
        for actor in runs:
            actor.tell("take")
        assert sorted(actor.hear()["answer"]["taken"] for actor in runs) == [False, False, False, True]
        for actor in runs:
            actor("leave")


def test_another_process_of_the_run_that_has_it_has_it_too(place):
    one = place.run()
    with actors(one, place.run(run=one.run)) as (_, two):
        keep(one)
        two("join")
        one.kill()
        assert stays(postmaster_of, place.server)
        assert two("take") == {"taken": True, "known": KNOWN}


def test_a_run_has_it_while_its_controller_lives(place):
    run = a_run(place.folder, controller=Process.this())
    with actors(place.run(run=run), place.run()) as (worker, other):
        keep(worker)
        worker("leave")
        worker.kill()
        assert other("join", "take")["taken"] is False
        other("leave")
        leave_run(run)


def test_it_goes_when_no_run_has_come_for_so_long(place):
    with actors(place.run(seconds=0.5)) as (actor,):
        keep(actor)
        time.sleep(0.7)
        assert postmaster_of(place.server)
        actor("leave")
        wait_until(lambda: place.left() == [])


def test_how_long_it_waits_is_what_the_last_run_has_said(place):
    with actors(place.run(seconds=60.0), place.run(seconds=0.2)) as (one, two):
        keep(one)
        one("leave")
        two("join", "take", "note", "leave")
        wait_until(lambda: place.left() == [])


def test_a_run_that_is_killed_before_it_has_noted_the_server_leaves_none(place):
    with actors(place.run()) as (actor,):
        actor("join", "take", "start_kept")
        actor.kill()
        wait_until(lambda: place.left() == [])


def test_a_run_that_is_killed_while_the_server_starts_leaves_none(place):
    with actors(place.run()) as (actor,):
        actor("join", "take")
        actor.tell("start_kept")
        wait_until(lambda: any("initdb" in words for words in place.left()))
        actor.kill()
        wait_until(lambda: place.left() == [])


def test_a_server_that_was_not_noted_is_ended_for_a_new_one(place):
    one = place.run()
    with actors(one, place.run(run=one.run)) as (_, two):
        one("join", "take", "start_kept")
        first = postmaster_of(place.server)
        two("join")
        one.kill()
        assert two("take") == {"taken": True, "known": None}
        two("start_kept", "note")
        assert postmaster_of(place.server) != first
        assert has_ended(first)


def test_when_its_keeper_was_killed_the_next_run_clears_up_and_has_a_new_one(place):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        first = postmaster_of(place.server)
        kill_keeper(place.server)
        one("leave")
        assert first.is_running()
        assert two("join", "take") == {"taken": True, "known": None}
        two("start_kept", "note")
        assert has_ended(first)


def test_what_a_killed_keeper_left_is_cleared_once_no_run_has_it(place):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        kill_keeper(place.server)
        two("sweep")
        assert postmaster_of(place.server)
        one.kill()
        two("sweep")
        assert place.left() == []
        two("join", "leave")  # as every run does, it clears what is left beside it


def test_a_server_that_died_is_not_kept(place):
    with actors(place.run()) as (actor,):
        keep(actor)
        postmaster_of(place.server).kill()
        assert stays(keeper_of, place.server)
        actor("leave")
        wait_until(lambda: place.left() == [])


def test_it_can_be_ended_at_once_if_no_run_has_it(place):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        one("leave")
        assert two("end_kept") == [True]
        assert place.left() == []
        assert two("end_kept") == []


def test_it_is_ended_with_the_run_that_has_it(place):
    with actors(place.run(), place.run()) as (one, two):
        keep(one)
        assert two("end_kept") == [False]
        assert stays(postmaster_of, place.server)
        one("leave")
        wait_until(lambda: place.left() == [])


def test_a_start_that_fails_leaves_no_keeper_and_no_hold(place):
    with actors(place.run(), place.run()) as (one, two):
        one("join", "take", "break_job")
        assert one.error("start_kept")["type"] == "ServerFailed"
        assert place.left() == []
        assert two("join", "take") == {"taken": True, "known": None}
        for actor in (one, two):
            actor("leave")


def test_its_secrets_can_be_read_by_its_user_alone(place):
    before = os.umask(0)
    try:
        with actors(place.run()) as (actor,):
            keep(actor)
            folder = place.server.folder
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder.parent, *folder.rglob("*")]}
            assert {path: mode for path, mode in modes.items() if mode & 0o077} == {}
            shown = [*keeper_of(place.server).cmdline(), *postmaster_of(place.server).cmdline()]
            assert "hunter2" not in " ".join(shown)
    finally:
        os.umask(before)


def test_where_its_folder_cannot_be_the_callers_alone_there_is_none(place):
    parent = place.server.folder.parent
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(PermissionError):
        kept.take(parent, place.server.id, a_run(place.folder), 60.0)
    assert list(Path(parent).iterdir()) == []
