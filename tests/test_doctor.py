"""The doctor tells what there is and changes nothing; the sweep drops what dead runs have left, and says what stays."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import asyncpg
import pytest
from conftest import Project
from databases import connected
from pg_dump import dump
from scenes import Scene
from schemas.test_sweep import alive, leave, leave_databases
from test_dead_runs import kill, left, start
from workshop import Workshop

from pytest_pgdbm import PgdbmServer
from pytest_pgdbm.doctor import advice
from pytest_pgdbm.doctor.lines import size
from pytest_pgdbm.ground import locks
from pytest_pgdbm.ground.names import new_run
from pytest_pgdbm.schemas import extensions
from pytest_pgdbm.schemas.proof import Proof, database_mark

HERE = f"process {os.getpid()} on {socket.gethostname()}"
DOCS = Path(__file__).parent.parent / "docs/how-to/clean-up.md"
Query = Callable[..., list[asyncpg.Record]]


class Patient:
    """Asks the doctor about a database, and has it swept, as the command line does."""

    def __init__(self, pytester: pytest.Pytester, url: str | None) -> None:
        self._pytester = pytester
        self._url = [] if url is None else [f"--pgdbm-url={url}"]

    def doctor(self, *args: str) -> tuple[int, str]:
        return self._ask("--pgdbm-doctor", *args)

    def sweep(self, *args: str) -> tuple[int, str]:
        return self._ask("--pgdbm-sweep", *args)

    def part(self, title: str, *args: str) -> str:
        """What the doctor says below one of its titles."""
        told = self.doctor(*args)[1]
        return dedent(next(part for part in told.split("\n\n") if part.startswith(title)).partition("\n")[2])

    def _ask(self, *args: str) -> tuple[int, str]:
        result = self._pytester.runpytest_inprocess(*args, *self._url)
        assert result.stderr.str() == ""
        return int(result.ret), "\n".join(result.outlines)


@pytest.fixture
def patient(pytester: pytest.Pytester, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    monkeypatch.setenv("PGDBM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Patient(pytester, database_url)


@pytest.fixture
def without_url(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    monkeypatch.setenv("PGDBM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    return Patient(pytester, None)


def without_others(told: str, *mine: str) -> str:
    """Without the databases that other tests have on the server meanwhile."""
    of = ((line, re.search(r"database (pgdbm_\w+)", line)) for line in told.splitlines())
    return "\n".join(line for line, found in of if found is None or found[1] in mine)


def plain(told: str) -> str:
    """Without what differs from machine to machine."""
    told = re.sub(r"PostgreSQL [\d.]+, \S+ \(.*?\)", "PostgreSQL 18.6, …/bin (its origin)", told)
    told = re.sub(r"\n +there is also PostgreSQL .*", "", told)
    told = re.sub(r"\n +cannot be used: .*", "", told)
    return re.sub(r"/\S+/cache/user\S*:", "…/cache:", told)


def test_without_a_url_it_tells_what_a_run_would_start(without_url: Patient) -> None:
    code, told = without_url.doctor()
    assert code == 0
    assert plain(told) == dedent(
        """\
        Which server a run gets
          url         none is given by --pgdbm-url, PGDBM_URL or pgdbm_url
          embedded    chosen: PostgreSQL 18.6, …/bin (its origin)
          container   only without that: the Docker daemon does not run: there is nothing at unix:///nowhere.sock
                      to mend it: start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to where it listens

        On this host
          cache       …/cache: empty
          kept        no server is kept
          dead runs   none has left a folder"""  # noqa: E501
    )


def test_where_no_server_can_be_had_it_says_what_mends_it(without_url: Patient, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, told = without_url.doctor(f"--pgdbm-server-bin={tmp_path / 'empty'}")
    assert code == 1
    assert told.splitlines()[:6] == [
        "Which server a run gets",
        "  url         none is given by --pgdbm-url, PGDBM_URL or pgdbm_url",
        f"  embedded    cannot be had: the server-bin folder cannot be used: {tmp_path / 'empty'} (server-bin): has no"
        " initdb and no postgres",
        "              to mend it: name the folder that holds initdb and postgres with --pgdbm-server-bin, or leave"
        " that out",
        "  container   not tried, since the programs are named (from --pgdbm-server-bin): the Docker daemon does not"
        " run: there is nothing at unix:///nowhere.sock",
        "              to mend it: start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to"
        " where it listens",
    ]
    code, told = without_url.doctor("--pgdbm-server=container")
    assert code == 1
    assert "  embedded    not tried, since server=container (from --pgdbm-server): PostgreSQL " in told
    assert "  container   cannot be had: the Docker daemon does not run" in told


def test_a_wrong_setting_is_told_as_in_a_run(pytester: pytest.Pytester) -> None:
    for what in ("--pgdbm-doctor", "--pgdbm-sweep"):
        result = pytester.runpytest_subprocess(what, "--pgdbm-server=embeded")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "ERROR: --pgdbm-server: 'embeded' is not known; did you mean 'embedded'?" in result.stderr.str()


def test_the_cache_and_a_kept_server_are_told(scene: Scene) -> None:
    scene.run(minutes="30")
    here = Patient(scene.project.pytester, None).part("On this host")
    lines = plain(here).splitlines()
    assert re.fullmatch(r"cache       …/cache: 1 cluster, \d+ MB", lines[0])
    assert re.fullmatch(r" +[0-9a-f]{32}\.cluster: \d+ MB, used today", lines[1])
    assert re.fullmatch(
        r"kept        embedded PostgreSQL \S+ \(.*\) on port \d+: used by no run, stays 30 minutes without one,"
        r" keeps 1 set in 1 database",
        lines[2],
    )
    assert lines[3:] == ["dead runs   none has left a folder"]


def test_what_killed_runs_have_left_on_this_host_is_told_and_swept(without_url: Patient, tmp_path: Path) -> None:
    folder = tmp_path / f"pgdbm-{os.getuid()}-0123456789"
    folder.mkdir(mode=0o700)
    (folder / "run.json").write_text('{"run": "0123456789"}')
    (tmp_path / f"pgdbm-{os.getuid()}-aaaaaaaaaa").mkdir(mode=0o700)
    (tmp_path / f"pgdbm-{os.getuid()}-aaaaaaaaaa" / "mine").touch()
    assert without_url.part("On this host").splitlines()[-1] == f"dead runs   {folder}: 21 bytes, would be swept"
    assert without_url.sweep() == (
        0,
        f"swept: {folder}\nat a URL: none is given, and servers of the plugin's own end with their run",
    )
    assert without_url.sweep() == (
        0,
        "on this host: no dead run has left anything\n"
        "at a URL: none is given, and servers of the plugin's own end with their run",
    )
    assert [path.name for path in tmp_path.glob("pgdbm-*")] == [f"pgdbm-{os.getuid()}-aaaaaaaaaa"]


def test_the_server_at_a_url_is_told(patient: Patient, database_url: str, pgdbm_server: PgdbmServer) -> None:
    code, told = patient.doctor()
    told = without_others(told, pgdbm_server.database)
    assert code == 0
    database = database_url.rpartition("/")[2]
    assert told.splitlines()[:2] == [
        "Which server a run gets",
        f"  url         chosen: postgresql://pgdbm:****@{pgdbm_server.host}:{pgdbm_server.port}/{database}"
        " (from --pgdbm-url)",
    ]
    assert "  embedded    not tried, since there is a URL: PostgreSQL" in told
    server = re.sub(r"\d+ in use by others now", "3 in use by others now", told.partition("The server at")[2])
    assert server == dedent(
        f"""\
         the URL
          at          {pgdbm_server.host}:{pgdbm_server.port}, database {database}, PostgreSQL {pgdbm_server.version}
          role        pgdbm, no superuser
                      may create schemas here
                      may create databases
                      may end its own sessions only, which is enough
          settings    fsync = off
                      synchronous_commit = off
                      shared_buffers = 128MB
                      max_locks_per_transaction = 256: room for 51200 locks; raise it if a run says "out of shared memory" (ALTER SYSTEM, restart)
                      max_prepared_transactions = 0: tests of PREPARE TRANSACTION need more (ALTER SYSTEM, restart)
          connections max_connections = 200, of which 3 are kept for others
                      3 in use by others now
                      -n 1 gives each worker a pool of up to 10, and with isolation 'database' up to 9 databases
                      -n 4 gives each worker a pool of up to 10, and with isolation 'database' up to 9 databases
                      -n 8 gives each worker a pool of up to 10, and with isolation 'database' up to 4 databases

        Made by runs of the plugin
          not ours    to drop, whatever the name or the comment says:
                        database {pgdbm_server.database}, 8 MB, owner pgdbm: it is a worker's, on a server that the plugin started
          in all      a sweep would drop nothing"""  # noqa: E501
    ).replace("8 MB", re.findall(rf"database {pgdbm_server.database}, (\d+ \w+)", told)[0])


def test_the_way_past_a_pooler_is_told_without_its_password(patient: Patient, database_url: str) -> None:
    told = patient.part("Which server a run gets", f"--pgdbm-admin-url={database_url}")
    place = database_url.rpartition("@")[2]
    assert f"            past the pooler: postgresql://pgdbm:****@{place} (from --pgdbm-admin-url)" in told.splitlines()


def test_what_a_role_lacks_is_told_with_what_mends_it(patient: Patient, workshop: Workshop) -> None:
    role = f"narrow_{os.getpid()}"
    at = workshop.own.tcp_url(workshop.database, workshop.own.login).partition("@")[2]

    async def make(*statements: str) -> None:
        async with workshop.superuser() as superuser:
            for statement in statements:
                await superuser.execute(statement)

    asyncio.run(
        make(
            f"create role {role} login password 'narrow' connection limit 8",
            f"alter role {role} set statement_timeout = '90s'",
            f"alter database {workshop.database} connection limit 40",
        )
    )
    try:
        narrow = Patient(patient._pytester, f"postgresql://{role}:narrow@{at}")
        code, told = narrow.doctor()
        assert code == 1
        part = told.partition("The server at the URL\n")[2]
        assert part.startswith(
            f'  refused     role "{role}" may not create schemas in database "{workshop.database}" at'
        )
        for line in (
            f'to mend it: as its owner: GRANT CREATE ON DATABASE "{workshop.database}" TO "{role}"',
            f"role        {role}, no superuser",
            f'may not create schemas here: GRANT CREATE ON DATABASE "{workshop.database}" TO "{role}"',
            f"may not create databases, which isolation 'database' needs: ALTER ROLE \"{role}\" CREATEDB",
            "statement_timeout = 90s: not for what the plugin does itself, but for code that sets none",
            f'role {role} may have 8: ALTER ROLE "{role}" CONNECTION LIMIT -1',
            f'the database lets in 40: ALTER DATABASE "{workshop.database}" CONNECTION LIMIT -1',
        ):
            assert line in part, line
        asyncio.run(make(f"grant create on database {workshop.database} to {role}"))
        code, told = narrow.doctor()
        assert code == 0
        assert f'-n 4 lets workers take turns: -n 2 would not, or ALTER ROLE "{role}" CONNECTION LIMIT 12' in told
        asyncio.run(make(f"alter role {role} connection limit 16"))
        code, told = narrow.doctor()
        assert code == 0
        assert "-n 4 gives each worker a pool of up to 2, and has no room for isolation 'database': -n 3 would" in told
    finally:
        asyncio.run(make(f"revoke all on database {workshop.database} from {role}", f"drop role {role}"))


def test_a_server_that_does_not_answer_is_told_without_the_password(without_url: Patient) -> None:
    url = "--pgdbm-url=postgresql://ada:secret@127.0.0.1:1/app_test"
    code, told = without_url.doctor(url)
    assert code == 1
    assert told.partition("The server at the URL\n")[2].splitlines() == [
        "  refused     127.0.0.1:1 refused the connection ([Errno 111] Connect call failed ('127.0.0.1', 1))",
        "              to mend it: start the server, or check host and port in the URL",
    ]
    code, swept = without_url.sweep(url)
    assert code == 1
    assert swept.splitlines()[:2] == [
        "at 127.0.0.1:1: not swept, 127.0.0.1:1 refused the connection"
        " ([Errno 111] Connect call failed ('127.0.0.1', 1))",
        "  to mend it: start the server, or check host and port in the URL",
    ]
    assert "secret" not in told + swept


def test_what_runs_have_left_is_told_and_swept(patient: Patient, workshop: Workshop) -> None:
    """All kinds of it at once: of a dead run, of a living one with a dead process, without proof, from elsewhere."""

    async def go() -> None:
        dead, living = new_run(), new_run()
        bases = await leave_databases(workshop, dead, 2)
        async with connected(workshop.url) as connection, alive(workshop.url, living, "gw0"):
            left = await leave(connection, dead, "users", "orders")
            await leave(connection, living, "users", worker="gw0")
            await leave(connection, living, "users", worker="gw1")
            await connection.execute(
                f"create view theirs as select * from {left[0]}.t;"
                "create schema pgdbm_0123456789_main_1_users;"
                f"create schema users; comment on schema users is $${Proof('0123456789').comment('users')}$$;"
                f"alter database {bases[1]} connection limit {database_mark(await _oid(connection, 'postgres'))}"
            )
            await extensions.make(connection, ["citext"], await workshop.by_url(workshop.url), dead)
            before = await dump(workshop.own, workshop.database, {})
            told = await asyncio.to_thread(patient.part, "Made by runs of the plugin")
            assert await dump(workshop.own, workshop.database, {}) == before
            assert re.sub(r"\b7\d{3} kB", "7200 kB", without_others(told, *bases)) == dedent(
                f"""\
                run         {dead}, of which no process lives
                              schema {left[0]}, 8192 bytes, owner pgdbm, by {HERE}: would stay, what the plugin did not make depends on it: view public.theirs
                              schema {left[1]}, 8192 bytes, owner pgdbm, by {HERE}: would be swept
                              database {bases[0]}, 7200 kB, owner pgdbm, by {HERE}: would be swept
                run         {living}, which lives
                              schema pgdbm_{living}_gw0_1_users, 8192 bytes, owner pgdbm, by {HERE}: in use
                              schema pgdbm_{living}_gw1_1_users, 8192 bytes, owner pgdbm, by {HERE}: its process has died, its run lives and sweeps it
                not ours    to drop, whatever the name or the comment says:
                              schema pgdbm_0123456789_main_1_users, 0 bytes, owner pgdbm: its comment does not say that the plugin made it
                              schema users, 0 bytes, owner pgdbm: the plugin gives no schema such a name
                              database {bases[1]}, 7200 kB, owner pgdbm: it was made by way of database postgres, and is swept there
                extensions  which stay, since others may use them by now:
                              citext {await connection.fetchval("select extversion from pg_extension where extname = 'citext'")}, run {dead}, {HERE}: DROP EXTENSION if nobody does
                in all      a sweep would drop 1 schema and 1 database, 7200 kB"""  # noqa: E501
            )
            code, swept = await asyncio.to_thread(patient.sweep)
            assert code == 1
            assert without_others(swept, *bases) == dedent(
                f"""\
                swept: schema {left[1]}
                swept: database {bases[0]}
                stays: schema {left[0]}, what the plugin did not make depends on it: view public.theirs
                lives: schema pgdbm_{living}_gw0_1_users, of run {living}
                lives: schema pgdbm_{living}_gw1_1_users, of run {living}
                not ours to drop: schema pgdbm_0123456789_main_1_users, its comment does not say that the plugin made it
                not ours to drop: schema users, the plugin gives no schema such a name
                not ours to drop: database {bases[1]}, it was made by way of database postgres, and is swept there
                on this host: no dead run has left anything"""
            )
            await connection.execute("drop view theirs")
            code, swept = await asyncio.to_thread(patient.sweep)
            assert (code, swept.splitlines()[0]) == (0, f"swept: schema {left[0]}")
            await connection.execute(f"drop database {bases[1]}")

    asyncio.run(go())


async def _oid(connection: asyncpg.Connection, database: str) -> int:
    return await connection.fetchval("select oid from pg_database where datname = $1", database)


def test_who_is_in_a_dead_runs_database_or_owns_it_keeps_it(patient: Patient, workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        (name,) = await leave_databases(workshop, run, 1)
        async with workshop.superuser() as superuser, connected(workshop.url.rpartition("/")[0] + "/" + name):
            (theirs,) = await leave(superuser, run, "users")
            told = await asyncio.to_thread(patient.part, "Made by")
            assert (
                f"owner postgres, by {HERE}: would stay, only its owner postgres or a superuser may drop it\n" in told
            )
            assert f"owner pgdbm, by {HERE}: would stay, 1 session is in it\n" in told
            code, swept = await asyncio.to_thread(patient.sweep)
            assert code == 1
            assert f"stays: schema {theirs}, the server refused to drop it: must be owner of schema {theirs}\n" in swept
            assert (
                f'stays: database {name}, the server refused to drop it: database "{name}" is being accessed' in swept
            )
            await superuser.execute(f"drop schema {theirs} cascade")
        code, swept = await asyncio.to_thread(patient.sweep)
        assert (code, swept.splitlines()[0]) == (0, f"swept: database {name}")

    asyncio.run(go())


def test_who_sweeps_already_is_waited_for(patient: Patient, workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as sweeper, connected(workshop.url) as connection:
            (schema,) = await leave(connection, new_run(), "users")
            await sweeper.fetchval("select pg_advisory_lock($1)", locks.SWEEPING)
            sweeping = asyncio.ensure_future(asyncio.to_thread(patient.sweep))
            there = "select 1 from pg_stat_activity where application_name = 'pgdbm sweep' and datname = $1"
            while not await connection.fetchval(there, workshop.database):
                await asyncio.sleep(0.02)
            await sweeper.execute("select pg_advisory_unlock_all()")
            code, told = await sweeping
            assert (code, told.splitlines()[0]) == (0, f"swept: schema {schema}")

    asyncio.run(go())


def test_a_sweep_drops_what_a_killed_run_has_left(project: Project, patient: Patient, query: Query) -> None:
    process = start(project)
    schemas = left(query)
    code, told = patient.sweep()
    assert code == 0
    assert all(f"lives: schema {schema}, of run " in told for schema in schemas)
    assert left(query) == schemas
    kill(process)
    code, told = patient.sweep()
    assert code == 0
    assert all(f"swept: schema {schema}\n" in told for schema in schemas)
    assert left(query) == set()


def test_the_doctors_session_cannot_write(workshop: Workshop) -> None:
    from pytest_pgdbm.doctor.visit import visiting

    async def go() -> None:
        async with visiting(await workshop.by_url(workshop.url)) as connection:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await connection.execute("create table t (id int)")

    asyncio.run(go())


@pytest.mark.parametrize(
    ("amount", "told"), [(0, "0 bytes"), (8192, "8192 bytes"), (10240, "10 kB"), (None, "of unknown size")]
)
def test_sizes_are_told_as_people_read_them(amount: int | None, told: str) -> None:
    assert size(amount) == told


def test_what_could_be_better_is_told_of_each_setting() -> None:
    values = {
        "server_version": "16.4",
        "max_connections": "20",
        "superuser_reserved_connections": "3",
        "reserved_connections": "2",
        "fsync": "on",
        "synchronous_commit": "on",
        "max_locks_per_transaction": "64",
        "max_prepared_transactions": "10",
        "shared_buffers": "16MB",
        "statement_timeout": "30s",
        "idle_session_timeout": "0",
    }
    facts = advice.Facts(values, "app", "app_test", False, -1, -1, 16 << 20, 4, ("left",))
    assert list(advice.settings(facts)) == [
        "fsync = on: on a server that holds nothing but tests, ALTER SYSTEM SET fsync = off makes it quicker",
        'synchronous_commit = on: ALTER DATABASE "app_test" SET synchronous_commit = off spares the wait for the disk'
        " at each commit",
        "shared_buffers = 16MB: 128MB serve tests better (ALTER SYSTEM, restart)",
        'max_locks_per_transaction = 64: room for 1920 locks; raise it if a run says "out of shared memory"'
        " (ALTER SYSTEM, restart)",
        "max_prepared_transactions = 10, 1 in this database, which keep their locks: ROLLBACK PREPARED 'left'",
        "statement_timeout = 30s: not for what the plugin does itself, but for code that sets none",
    ]
    assert list(advice.connections(facts)) == [
        "max_connections = 20, of which 5 are kept for others",
        "4 in use by others now",
    ]


@pytest.mark.skipif(not DOCS.exists(), reason="the page is in the checkout only")
def test_the_page_shows_what_the_sweep_prints(patient: Patient, workshop: Workshop) -> None:
    shown = re.search(r"```text\n(swept: .*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None

    async def go() -> None:
        async with connected(workshop.url) as connection:
            left = await leave(connection, "3fa9c01b7e", "users", "orders")
            await connection.execute(f"create view report as select * from {left[0]}.t")
            made = await asyncio.to_thread(patient.part, "Made by")
            code, swept = await asyncio.to_thread(patient.sweep)
            assert code == 1
            assert _lines_of(made) >= _lines_of(_shown("run         3fa9c01b7e"))
            assert _lines_of(swept) >= _lines_of(shown[1])

    asyncio.run(go())


def _shown(start: str) -> str:
    text = DOCS.read_text(encoding="utf-8")
    return text[text.index(start) :].partition("```")[0]


def _lines_of(text: str) -> set[str]:
    return {
        re.sub(r"process \d+ on \S+:", "process 4711 on ada:", line).replace("owner app", "owner pgdbm").strip()
        for line in text.splitlines()
    }
