"""What is the run's stays the run's: no other user comes in, no secret comes out, and no name becomes a command."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from conftest import INI, USERS, Project
from hostile import FILES, NAMES, NASTY, WILD
from hypothesis import Phase, example, given, settings
from keeper.runs import needs_root
from scenes import Scene, eventually
from workshop import Workshop

from pytest_pgdbm import Service
from pytest_pgdbm.connections import psql
from pytest_pgdbm.connections.login import dsn
from pytest_pgdbm.fixtures import SESSION
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.ground.masks import SecretUrl
from pytest_pgdbm.servers.private import make_private
from pytest_pgdbm.settings import resolve

SOMEBODY = 54321
"""A user who is neither the one of the tests nor the one of the server."""

BURGLAR = """
import encodings.idna, json, os, socket, struct, sys

told = json.load(sys.stdin)
os.setgroups([])
os.setresgid(told["uid"], told["uid"], told["uid"])
os.setresuid(told["uid"], told["uid"], told["uid"])

def tried(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__

def greeting(user, database):
    with socket.create_connection((told["host"], told["port"]), 10) as door:
        words = b"".join(f"{word}\\0".encode() for word in ("user", user, "database", database)) + b"\\0"
        door.sendall(struct.pack("!ii", 8 + len(words), 196608) + words)
        kind, _, code = struct.unpack("!cii", door.makefile("rb").read(9))
        return [kind.decode(), code]

def by_socket():
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(f"{told['sockets']}/.s.PGSQL.{told['port']}")

print(json.dumps({
    "tcp": [tried(lambda: greeting(user, "postgres")) for user in told["users"]],
    "socket": tried(by_socket),
    "listed": [tried(lambda: os.listdir(folder)) for folder in told["folders"]],
    "read": [tried(lambda: open(file).read()) for file in told["files"]],
    "written": [tried(lambda: open(f"{folder}/x", "w").close()) for folder in told["folders"]],
    "environ": [tried(lambda: open(f"/proc/{pid}/environ").read()) for pid in told["pids"]],
}))
"""

TELLS = """
    import json, pathlib
    from pytest_pgdbm.fixtures import SESSION

    async def test_tells(users_db, request, pgdbm_pool):
        session = request.config.stash[SESSION]
        endpoint = session._get_endpoint()
        data = await pgdbm_pool.fetchval("select pg_backend_pid()")
        told = {
            "host": endpoint.host,
            "port": endpoint.port,
            "sockets": endpoint.socket_dir,
            "users": [endpoint.admin.user, endpoint.login.user],
            "secrets": [endpoint.admin.password, endpoint.login.password],
            "folder": str(session.run.folder),
            "pids": [data],
        }
        new = pathlib.Path(__file__).with_name("told.new")
        new.write_text(json.dumps(told))
        new.rename(new.with_suffix(".json"))
        input()
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A run on a server of its own that stands still in a test, and what it tells of itself."""
    folder = tmp_path_factory.mktemp("running")
    texts = {
        "test_it.py": TELLS,
        "pytest.ini": INI,
        "migrations/users/001.sql": USERS,
        "conftest.py": "from pytest_pgdbm import pgdbm_db\nusers_db = pgdbm_db('users')\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text), encoding="utf-8")
    told = folder / "told.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "--pgdbm-server=embedded"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PGDBM_URL", "PYTEST_XDIST"))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: told.exists() or process.poll() is not None)
        yield {**json.loads(told.read_text()), "run": process.pid}
    finally:
        output, _ = process.communicate("\n", timeout=30)
        assert process.returncode == 0, output


def below(folder: Path) -> Iterator[Path]:
    """The folder and all that is in it."""
    yield folder
    yield from folder.rglob("*")


def processes() -> Iterator[Path]:
    yield from (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@needs_root()
def test_another_user_of_the_machine_does_not_come_in(running: dict[str, Any]) -> None:
    folder = Path(running["folder"])
    sockets = Path(running["sockets"])
    home = sockets.parent if sockets.name == "s" else sockets
    job = {
        **running,
        "uid": SOMEBODY,
        "folders": [str(sockets), str(home), str(home / "data"), str(folder)],
        "files": [str(folder / name) for name in ("result", "job", "keeper", "door", "postgres.log", "keeper.log")],
        "pids": [*running["pids"], running["run"]],
    }
    done = subprocess.run([sys.executable, "-c", BURGLAR], input=json.dumps(job), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    denied = "PermissionError"
    assert found["tcp"] == [["R", 10]] * 2  # asked for a proof by SASL: nobody is trusted
    assert found["socket"] == denied
    assert set(found["listed"]) == {denied}
    assert set(found["read"]) <= {denied, "FileNotFoundError"}
    assert set(found["written"]) == {denied}
    assert set(found["environ"]) == {denied}


def test_nobody_but_the_user_may_enter_or_read_what_the_run_has_made(running: dict[str, Any]) -> None:
    folder, sockets = Path(running["folder"]), Path(running["sockets"])
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) & 0o066 == 0  # entered by the server's user, read by nobody
    open_to_others = [path for path in below(folder) if path != folder and path.lstat().st_mode & 0o077]
    assert [path for path in open_to_others if path.is_file() or path.is_dir()] == []
    assert (folder / "job").exists() is False


def test_the_servers_password_is_asked_for_by_every_way(running: dict[str, Any]) -> None:
    """Over TCP, and over the socket too, by whoever may reach it."""
    rules = None
    for at in (Path(running["sockets"]).parent, Path(running["folder"])):
        for file in at.rglob("pg_hba.conf"):
            lines = [line.split() for line in file.read_text().splitlines() if line and not line.startswith("#")]
            rules = {line[-1] for line in lines}
    assert rules == {"scram-sha-256"}


def test_secrets_are_in_no_command_line_environment_or_file_that_others_can_read(running: dict[str, Any]) -> None:
    secrets = [secret.encode() for secret in running["secrets"]]
    assert all(len(secret) > 20 for secret in secrets)
    for process, name in itertools.product(processes(), ("cmdline", "environ", "comm")):
        text = content(process / name)
        assert not [process for secret in secrets if secret in text]
    folder = Path(running["folder"])
    holding = {path for path in below(folder) if path.is_file() and any(s in content(path) for s in secrets)}
    assert {path.name for path in holding} == {"result"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    data = Path(running["sockets"]).parent
    assert not [path for path in data.rglob("*") if path.is_file() and any(s in content(path) for s in secrets)]


FAILING = """
    import logging, pathlib
    import pytest
    from pytest_pgdbm import pgdbm_db
    from pytest_pgdbm.fixtures import SESSION

    users_db = pgdbm_db("users")

    @pytest.fixture(autouse=True)
    def note(request):
        endpoint = request.config.stash[SESSION]._get_endpoint()
        pathlib.Path(__file__).with_name("secrets").write_text(f"{endpoint.admin.password}\\n{endpoint.login.password}")

    async def test_all_that_can_be_printed(
        users_db, pgdbm_server, pgdbm_url, pgdbm_pool, pgdbm_db, pgdbm_services, request, caplog
    ):
        caplog.set_level(0)
        logging.getLogger("asyncpg").debug("logged")
        session = request.config.stash[SESSION]
        endpoint = session._get_endpoint()
        assert [pgdbm_server, pgdbm_url, users_db, users_db.dsn, pgdbm_pool, pgdbm_db, endpoint, session] == []

    async def test_a_failing_query(users_db, pgdbm_url):
        dsn = users_db.dsn
        await users_db.fetch_all("select * from nowhere")

    async def test_a_failing_build(pgdbm_db):
        await pgdbm_db("broken")

    async def test_a_failing_seed(pgdbm_db):
        async def load(db):
            raise RuntimeError(f"cannot reach {db.dsn!r} or {db!r}")
        await pgdbm_db("users", seed=load)

    async def test_the_servers_end(users_db, pgdbm_pool):
        await users_db.execute("select pg_terminate_backend(pg_backend_pid())")

    async def test_a_leak(users_db):
        connection = await users_db.pool.acquire()
        await connection.execute("begin")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_no_failure_shows_the_secrets_of_a_server_of_ones_own(
    own_server_project: Project, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    own_server_project.write("migrations/broken/001.sql", "select nothing;")
    result = own_server_project.run_apart(
        *("-n", workers, "-W", "default", "-rA", "-vv", "--showlocals", "--tb=long", "--full-trace", "--setup-show"),
        *("--junitxml=report.xml", "-o", "junit_logging=all", "-o", "log_cli=true", "--log-level=0"),
        *("--log-file=log.txt", "--durations=0", "--pgdbm-server=embedded"),
        test=FAILING,
    )
    assert result.parseoutcomes()["failed"] >= 5
    secrets = (own_server_project.path / "secrets").read_text().split()
    assert len(set(secrets)) == 2
    written = [own_server_project.path / name for name in ("report.xml", "log.txt")]
    texts = [result.stdout.str(), result.stderr.str(), *(path.read_text() for path in written)]
    for secret, text in itertools.product(secrets, texts):
        assert secret not in text, text[text.index(secret) - 500 : text.index(secret) + 100]


NOTES = """
    import json, pathlib
    from pytest_pgdbm.fixtures import SESSION

    async def test_notes(users_db, request):
        endpoint = request.config.stash[SESSION]._get_endpoint()
        told = pathlib.Path(__file__).with_name("told.json")
        told.write_text(json.dumps([endpoint.admin.password, endpoint.login.password]))
"""


def test_of_a_kept_server_one_file_holds_the_secrets_and_is_its_users(scene: Scene) -> None:
    secrets = [secret.encode() for secret in scene.run(test=NOTES)]
    cache = Path(os.environ["PGDBM_CACHE_DIR"])
    holding = [path for path in below(cache) if path.is_file() and any(s in content(path) for s in secrets)]
    assert [path.name for path in holding] == ["server"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in below(cache) if path != cache}
    links = {path for path in modes if path.is_symlink()}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o066 and path not in links} == {}
    for process, name in itertools.product(processes(), ("cmdline", "environ")):
        text = content(process / name)
        assert not [process for secret in secrets if secret in text]
    assert not any(secret.decode() in "".join(scene.kept("list")) for secret in secrets)


def _elsewhere(folder: Path) -> Path:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    return elsewhere


def _state(at: Path) -> tuple[int, ...]:
    status = at.lstat()
    return status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns


TRAPS = {
    "a link": lambda at: at.symlink_to(_elsewhere(at)),
    "a link to nowhere": lambda at: at.symlink_to(at.with_name("nowhere")),
    "a folder that all may write in": lambda at: (at.mkdir(), at.chmod(0o777)),
    "a folder that a group may write in": lambda at: (at.mkdir(), at.chmod(0o770)),
    "a file": lambda at: at.write_text(""),
    "somebody's folder": lambda at: (at.mkdir(mode=0o700), os.chown(at, SOMEBODY, SOMEBODY)),
}


@pytest.mark.parametrize("trap", [pytest.param(name, marks=needs_root() if "'" in name else ()) for name in TRAPS])
def test_a_folder_that_somebody_has_made_before_is_refused(tmp_path: Path, trap: str) -> None:
    TRAPS[trap](tmp_path / "cache")
    before = _state(tmp_path / "cache")
    with pytest.raises(OSError, match="cache"):
        make_private(tmp_path / "cache")
    assert _state(tmp_path / "cache") == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("trap", ["a link", "a folder that all may write in"])
def test_a_run_works_without_a_cache_that_somebody_has_made_before(
    own_server_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    at = tmp_path / "cache" / f"user-{os.geteuid()}"
    at.parent.mkdir()
    TRAPS[trap](at)
    before = set(below(at.parent)), _state(at)
    monkeypatch.setenv("PGDBM_CACHE_DIR", str(at.parent))
    result = own_server_project.run_apart(
        "--pgdbm-server=embedded", "--pgdbm-keep-alive=5", test="async def test_it(users_db): pass"
    )
    result.assert_outcomes(passed=1)
    assert (set(below(at.parent)), _state(at)) == before


MAKES = """
do $make$ begin execute format('create table {{{{schema}}}}.%I (%I text)', {table}, {column}); end $make$;
"""


def hidden(text: str) -> str:
    """An SQL expression for the text in which nothing of it can be seen."""
    return f"convert_from(decode('{text.encode().hex()}', 'hex'), 'utf8')"


_examples = itertools.count()


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(service=NASTY, table=NAMES, column=NAMES, value=NASTY, file=FILES, module=NASTY)
@example(service="a\0b", table="t", column="c", value="v", file="f", module="m")
@example(service="\ud800", table="t", column="c", value="v", file="f", module="m")
def test_no_name_becomes_a_statement(
    shared_workshop: Workshop, service: str, table: str, column: str, value: str, file: str, module: str
) -> None:
    """Every name is what it was when it comes back, or is refused in words."""
    workshop, number = shared_workshop, next(_examples)
    folder = workshop.folder / f"nasty{number} {file}"
    folder.mkdir()
    (folder / f"1_{file}.sql").write_text(MAKES.format(table=hidden(table), column=hidden(column)), encoding="utf-8")
    seed = file.replace(";", "").replace("\n", "")  # a path with these is refused: it looks like SQL
    sown = workshop.folder / f"seeds{number} {seed}"
    sown.mkdir()
    (sown / f"{seed}.sql").write_text("create table {{tables.by_file}} as select 1 as one", encoding="utf-8")

    async def go() -> None:
        async with workshop.superuser() as superuser:
            await superuser.execute("create table if not exists public.canary (id int)")
            declared = Service(
                folder, seed=[{table: [{column: value}]}, sown / f"{seed}.sql"], module=module[:100] or None
            )
            asked = workshop.ask(service, {service: declared})
            async with workshop.home(own=number % 2 == 0) as home:
                built = await home.build(asked.plan, asked.others)
                (schema,) = built.schemas.values()
                quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))
                assert [tuple(row.items()) for row in await superuser.fetch(f"select * from {quoted}")] == [
                    ((column, value),)
                ]
                applied = await superuser.fetch(f"select filename, module_name from {schema}.schema_migrations")
                assert [tuple(row) for row in applied] == [(f"1_{file}.sql", module[:100])]
                again = await home.build(asked.plan, asked.others)
                assert await home.drop([built, again]) == ([], [])
            assert await superuser.fetchval("select count(*) from public.canary") == 0
            assert await superuser.fetch("select from pg_namespace where nspname ~ '^pgdbm_'") == []

    asyncio.run(go())


@settings(max_examples=200)
@given(WILD)
def test_what_a_setting_lets_through_can_do_nothing_in_sql(text: str) -> None:
    """Names of the path and of extensions are plain; nothing of them needs quoting."""
    for stem, letters in (("search-path", "$_, "), ("extensions", "-_"), ("server-version", "."), ("image", "._-/:@")):
        try:
            read = resolve(lambda s, stem=stem: text if s == stem else None, {}, lambda _: None, "ini", Path())
        except ConfigError:
            continue
        value = getattr(read, stem.replace("-", "_")).value
        for name in value if isinstance(value, tuple) else (value or "",):
            assert all(c.isascii() and (c.isalnum() or c in letters) for c in name), name


@settings(max_examples=200)
@given(database=WILD, password=WILD, user=WILD)
def test_the_command_for_psql_is_one_command_without_the_password(database: str, password: str, user: str) -> None:
    database, password, user = (text.replace("\0", "") or "x" for text in (database, password, user))
    database, password, user = (text.encode("utf-8", "ignore").decode() for text in (database, password, user))
    mine = Login(user, f"Zw9{password}Zw9")
    plain = Endpoint("container", "16", "127.0.0.1", 5432, database, mine, mine)
    given_url = Endpoint("url", "16", "h", 5432, database, mine, mine, url=plain.tcp_url(database, mine))
    words = shlex.split(psql.command(given_url, database, Path(), ["s"]))
    assert words[0] == "PGOPTIONS=-c search_path=s,public"
    assert words[1] == "psql"
    assert len(words) == 3
    assert "Zw9" not in words[2]


def test_a_url_hides_its_password_in_every_form(database_url: str, request: pytest.FixtureRequest) -> None:
    own: Endpoint = request.config.stash[SESSION]._get_endpoint()
    for url in (
        own.tcp_url("d", own.admin),
        dsn(own, "d", own.admin),
        f"postgresql://h/d?password={own.admin.password}",
    ):
        assert own.admin.password in url
        assert own.admin.password not in repr(SecretUrl(url))
    assert own.admin.password not in repr(own)
