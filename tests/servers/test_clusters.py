"""The cluster that is made once and copied after that: never a wrong one, never anybody else's, never a half one."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import asyncpg
import pytest
from keeper.runs import (
    ActorProcess,
    a_job,
    a_run,
    actors,
    as_user,
    common_python,
    keeper_of,
    left_of,
    needs_root,
    other_user,
    packages,
)
from servers.test_embedded import a_server, ask, one_of_each_other_major_version, programs

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers import cache
from pytest_pgdbm.servers.embedded import EmbeddedServer
from pytest_pgdbm.servers.installations import find_installations
from pytest_pgdbm.servers.scram import PLACEHOLDER, replace_placeholder, verifier


class Stage:
    """Servers that have a cache."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "cache" / "abc.cluster"
        self.file.parent.mkdir(mode=0o700)

    def start(self, **changes):
        """Starts a server and says whether it took `initdb`; its folder holds the log of that, if so."""
        run, job = a_server(self.folder, cluster=str(self.file), **changes)
        server = EmbeddedServer(job)
        started = vars(server.start())
        try:
            assert ask(started, job.admin, "SELECT current_user::text") == "boss"
            return (run.folder / "initdb.log").exists()
        finally:
            server.stop()
            assert left_of(run) == [str(run.folder)]

    def content(self):
        """The file, complete, and nothing beside it."""
        assert [entry.name for entry in self.file.parent.iterdir()] == [self.file.name]
        return self.file.read_bytes()


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The content of a cached cluster."""
    stage = Stage(tmp_path_factory.mktemp("made"))
    assert stage.start()
    return stage.content()


def test_the_first_server_makes_the_cluster_and_the_next_ones_copy_it(stage):
    assert [stage.start() for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("installation", one_of_each_other_major_version(), ids=lambda one: one.version)
def test_a_cluster_of_every_other_major_version_is_copied_too(stage, installation):
    assert [stage.start(installation=installation) for _ in range(2)] == [True, False]


def test_each_copy_lets_in_who_knows_its_own_password_alone(stage, made):
    stage.file.write_bytes(made)
    (one_run, one), (_, other) = (a_server(stage.folder, cluster=str(stage.file)) for _ in range(2))
    server = EmbeddedServer(one)
    started = vars(server.start())
    try:
        assert ask(started, one.admin) == 1
        for password in (other.admin.password, PLACEHOLDER, "", None):
            with pytest.raises(asyncpg.InvalidPasswordError):
                ask(started, dataclasses.replace(one.admin, password=password), passfile="/nowhere")
    finally:
        server.stop()
    assert not (one_run.folder / "initdb.log").exists()


def test_a_copy_costs_a_login_one_scram_iteration_on_any_version(stage):
    for installation in [next(find_installations()), *one_of_each_other_major_version()]:
        _, job = a_server(stage.folder, installation=installation)
        server = EmbeddedServer(job)
        started = vars(server.start())
        stored = ask(started, job.admin, "SELECT rolpassword FROM pg_authid WHERE rolname = 'boss'")
        server.stop()
        assert stored == job.verifier
        assert stored.startswith("SCRAM-SHA-256$1:")


def test_the_cache_holds_no_secret_and_is_closed_to_others(stage):
    _, job = a_server(stage.folder, cluster=str(stage.file))
    server = EmbeddedServer(job)
    server.start()
    server.stop()
    content = stage.content()
    assert content.count(PLACEHOLDER.encode()) >= 1
    assert job.verifier.encode() not in content
    assert job.admin.password.encode() not in content
    assert stage.file.stat().st_mode & 0o077 == 0


def test_folders_of_the_cache_are_made_and_closed_to_others(stage):
    stage.file = stage.folder / "new" / "inner" / "abc.cluster"
    assert stage.start()
    assert stage.file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content + b"x",
        lambda content: b"nonsense" * 1000,
        lambda content: bytes(len(content)),
        lambda content: content[:-3_000_000] + bytes(100) + content[-2_999_900:],
        lambda content: content.replace(PLACEHOLDER.encode(), PLACEHOLDER.lower().encode()),
    ],
    ids=["empty", "cut off", "too long", "nonsense", "zeros", "zeros within", "another verifier"],
)
def test_a_damaged_file_is_not_used_and_made_anew(stage, made, damage):
    stage.file.write_bytes(damage(made))
    assert stage.start()
    stage.content()
    assert not stage.start()


def test_a_cluster_on_which_no_server_starts_is_made_anew(stage):
    """Its bytes are as they were written: the data directory itself is of no use."""
    first = next(find_installations())
    others = [one for one in find_installations() if one.major != first.major]
    if not others:
        pytest.skip("needs two major versions of PostgreSQL")
    assert stage.start(installation=others[0])
    assert stage.start(installation=first)
    assert not stage.start(installation=first)


def test_a_file_that_others_can_write_is_not_used(stage, made):
    stage.file.write_bytes(made)
    stage.file.chmod(0o666)
    assert stage.start()
    assert stage.file.stat().st_mode & 0o077 == 0


def test_a_link_is_not_followed(stage, made):
    elsewhere = stage.folder / "elsewhere"
    elsewhere.write_bytes(made)
    stage.file.symlink_to(elsewhere)
    assert stage.start()
    assert not stage.file.is_symlink()
    assert elsewhere.read_bytes() == made


@needs_root()
def test_another_users_file_is_not_used(stage, made):
    stage.file.write_bytes(made)
    os.chown(stage.file, other_user(), other_user())
    assert stage.start()
    assert stage.file.stat().st_uid == os.getuid()


@pytest.mark.parametrize("whose", ["others can write in it", "another user's", "a link"])
def test_a_folder_that_is_not_the_callers_alone_gets_nothing(stage, whose):
    folder = stage.file.parent
    if whose == "others can write in it":
        folder.chmod(0o777)
    elif whose == "a link":
        folder.rmdir()
        (stage.folder / "elsewhere").mkdir()
        folder.symlink_to(stage.folder / "elsewhere")
    elif os.getuid() == 0:
        os.chown(folder, other_user(), other_user())
    else:
        pytest.skip("only root can make a folder of another user's")
    assert [stage.start() for _ in range(2)] == [True, True]
    assert list(folder.iterdir()) == []


def test_where_the_cache_cannot_be_made_each_server_takes_initdb(stage):
    stage.file.parent.rmdir()
    stage.file.parent.touch()
    assert [stage.start() for _ in range(2)] == [True, True]


@needs_root()
@pytest.mark.parametrize("options", ["ro", "size=5m"], ids=["read-only", "full"])
def test_a_cache_that_is_read_only_or_full_is_left_as_it_is(stage, options):
    job_run = a_run(stage.folder)
    mount = f'mount -t tmpfs -o mode=0700,{options} tmpfs {stage.file.parent} && exec "$@"'
    job = a_job(job_run, cluster=str(stage.file))
    with actors(ActorProcess(job_run, job, prefix=("unshare", "--mount", "sh", "-c", mount, "sh"))) as (actor,):
        started = actor("join", "start")
        assert ask(started, job.admin) == 1
        inside = Path(f"/proc/{actor.pid}/root{stage.file.parent}")
        assert list(inside.iterdir()) == []


@needs_root()
def test_a_read_only_cache_that_is_filled_is_used(stage, made):
    stage.file.write_bytes(made)
    run = a_run(stage.folder)
    mount = f"mount --bind {stage.file.parent} {stage.file.parent} && mount -o remount,bind,ro {stage.file.parent}"
    prefix = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    with actors(ActorProcess(run, a_job(run, cluster=str(stage.file)), prefix=prefix)) as (actor,):
        actor("join", "start")
        assert not (run.folder / "initdb.log").exists()


def test_two_runs_that_make_it_at_once_do_not_hinder_each_other(stage):
    runs = [a_run(stage.folder) for _ in range(2)]
    jobs = [a_job(run, cluster=str(stage.file)) for run in runs]
    with actors(*map(ActorProcess, runs, jobs)) as both:
        for actor in both:
            actor("join")
            actor.tell("start")
        for actor in both:
            assert ask(actor.hear()["answer"], actor.job.admin) == 1
    stage.content()
    assert not stage.start()


def test_a_run_that_is_killed_while_it_makes_it_leaves_nothing_that_is_used(stage):
    half = kill_half_way(stage)
    assert not stage.file.exists()
    assert stage.start()
    assert not stage.start()
    assert half.exists()  # another run might be writing it still
    hours_ago = time.time() - 2 * 3600
    os.utime(half, (hours_ago, hours_ago))
    stage.file.unlink()
    assert stage.start()
    stage.content()


def kill_half_way(stage):
    """Kills a run, its keeper included, while that writes the file; returns what it has left."""
    for _ in range(20):
        run = a_run(stage.folder)
        with actors(ActorProcess(run, a_job(run, cluster=str(stage.file)))) as (actor,):
            actor("join")
            actor.tell("start")
            while not (halves := list(stage.file.parent.glob("*.cluster*"))):
                time.sleep(0.0005)
            keeper_of(run).kill()
            actor.hear()
            actor("leave")
        if not stage.file.exists():
            return halves[0]
        stage.file.unlink()
    raise AssertionError("the keeper was never killed in time")


def test_clusters_that_nobody_has_used_for_a_month_go(stage, made):
    old, young = (stage.file.with_name(name) for name in ("old.cluster", "young.cluster"))
    long_ago = time.time() - 31 * 86400
    for file in (old, young):
        file.write_bytes(made)
    os.utime(old, (long_ago, long_ago))
    assert stage.start()
    assert sorted(entry.name for entry in stage.file.parent.iterdir()) == ["abc.cluster", "young.cluster"]


def test_of_many_clusters_those_that_were_used_last_stay(stage):
    now = time.time()
    for number in range(20):
        other = stage.file.with_name(f"other{number:02}.cluster")
        other.touch()
        os.utime(other, (now - 60 * number, now - 60 * number))
    assert stage.start()
    left = sorted(entry.name for entry in stage.file.parent.iterdir())
    assert left == ["abc.cluster", *(f"other{number:02}.cluster" for number in range(11))]


def test_using_a_cluster_keeps_it_from_going(stage, made):
    stage.file.write_bytes(made)
    long_ago = time.time() - 31 * 86400
    os.utime(stage.file, (long_ago, long_ago))
    assert not stage.start()
    assert time.time() - stage.file.stat().st_mtime < 60


def test_a_server_that_is_stopped_while_it_copies_leaves_nothing(stage, made):
    stage.file.write_bytes(made)
    for delay in (0.0, 0.005, 0.02, 0.04, 0.06):
        run, job = a_server(stage.folder, cluster=str(stage.file))
        server = EmbeddedServer(job)
        thread = threading.Thread(target=started_or_stopped, args=(server,))
        thread.start()
        thread.join(delay)
        server.stop()
        thread.join()
        assert left_of(run) == [str(run.folder)]


def started_or_stopped(server):
    with contextlib.suppress(ServerFailed):
        server.start()


def test_a_verifier_lets_its_password_in_and_is_never_twice_the_same():
    one, other = verifier("secret"), verifier("secret")
    assert one != other
    assert len(one) == len(other) == len(PLACEHOLDER)


def test_a_placeholder_that_is_not_there_exactly_once_is_told(tmp_path):
    (tmp_path / "global").mkdir()
    for content in (b"", PLACEHOLDER.encode() * 2):
        (tmp_path / "global/1260").write_bytes(content)
        assert not replace_placeholder(tmp_path, verifier("secret"))
        assert (tmp_path / "global/1260").read_bytes() == content


def test_an_initdb_that_stores_the_password_elsewhere_is_run_with_the_real_one(stage):
    folder = Path("/var/tmp") / f"programs-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o755)
    try:
        real = next(find_installations()).bindir
        # The file of the roles is another one after this.
        moved = "VACUUM FULL pg_authid"
        script = (
            f'{real}/initdb "$@" || exit; while [ "$1" != -D ]; do shift; done\n'
            f'echo "{moved}" | {real}/postgres --single -D "$2" postgres'
        )
        bindir = programs(folder, initdb=script)
        _, job = a_server(stage.folder, cluster=str(stage.file))
        server = EmbeddedServer(dataclasses.replace(job, installation=str(bindir)))
        try:
            assert ask(vars(server.start()), job.admin) == 1
        finally:
            server.stop()
        assert list(stage.file.parent.iterdir()) == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def installation(tmp_path):
    """An installation whose files can be changed."""
    found = next(find_installations())
    prefix = tmp_path / "installation"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "share").mkdir()
    for name in ("bin/postgres", "bin/initdb", "share/postgres.bki"):
        (prefix / name).write_text(name)
    return found._replace(bindir=prefix / "bin")


def name(installation):
    return cache.cluster_file(installation, {"PGDBM_CACHE_DIR": "/c"}).name


def test_the_same_installation_has_the_same_cluster(installation):
    assert name(installation) == name(installation._replace())


@pytest.mark.parametrize("file", ["bin/postgres", "bin/initdb", "share/postgres.bki"])
@pytest.mark.parametrize("change", ["time", "size", "replaced"])
def test_other_programs_have_another_cluster(installation, file, change):
    before = name(installation)
    path = installation.bindir.parent / file
    status = path.stat()
    if change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        new = path.with_name("new")
        new.write_text(path.read_text() + ("x" if change == "size" else ""))
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        new.replace(path)
    assert name(installation) != before


def test_another_version_and_another_place_have_another_cluster(installation):
    moved = installation.bindir.with_name("bin2")
    shutil.copytree(installation.bindir, moved)
    others = [installation._replace(version="18.99"), installation._replace(bindir=moved)]
    assert len({name(one) for one in (installation, *others)}) == 3


def test_another_c_library_or_set_of_locales_has_another_cluster(installation, monkeypatch, tmp_path):
    before = {name(installation)}
    monkeypatch.setattr(cache, "_LOCALES", tmp_path)
    before.add(name(installation))
    (tmp_path / "sv_SE.utf8").mkdir()
    before.add(name(installation))
    (tmp_path / "locale-archive").write_text("x")
    before.add(name(installation))
    monkeypatch.setattr(cache.platform, "libc_ver", lambda: ("glibc", "9.99"))
    before.add(name(installation))
    assert len(before) == 5


def test_the_cache_lies_in_the_users_cache_folder_or_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    who = f"user-{os.getuid()}"
    assert cache.cache_folder({}) == tmp_path / "pytest-pgdbm" / who
    assert cache.cache_folder({"PGDBM_CACHE_DIR": ""}) == tmp_path / "pytest-pgdbm" / who
    assert cache.cache_folder({"PGDBM_CACHE_DIR": "/srv/cache"}) == Path("/srv/cache") / who
    monkeypatch.chdir(tmp_path)
    assert cache.cache_folder({"PGDBM_CACHE_DIR": "here"}) == tmp_path / "here" / who


@needs_root()
def test_a_home_that_is_another_users_gets_no_cache(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, other_user(), other_user())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert cache.cache_folder({}) is None
    assert cache.cluster_file(next(find_installations()), {}) is None


@needs_root()
@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "nowhere"}, {"PGDBM_CACHE_DIR": "~/cache"}], ids=str)
def test_a_user_without_name_and_home_gets_no_cache(environ):
    code = "import os; from pytest_pgdbm.servers.cache import cache_folder; print(cache_folder(os.environ))"
    paths = {"PYTHONPATH": os.pathsep.join(packages()), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    command = [*as_user(12345), common_python(), "-c", code]
    done = subprocess.run(command, env={**paths, **environ}, cwd="/", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_a_home_that_is_no_folder_gets_no_cache(monkeypatch, tmp_path):
    (tmp_path / "home").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder({}) is None
