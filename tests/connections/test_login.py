"""The first login: each way in which it fails is told in words, with what mends it and without the password."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from databases import connected
from keeper.runs import a_job, a_run
from workshop import Workshop

from pytest_pgdbm.connections import crowd, login
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.schemas.drop import drop
from pytest_pgdbm.schemas.holders import find_holders
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.servers import embedded
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer

SECRET = "p@ss:w/o%rd?#&'\" ä"


@dataclasses.dataclass
class Door:
    """A role with a troublesome password, and the URLs by which it knocks."""

    workshop: Workshop
    user: str

    def url(
        self, password: str = SECRET, *, user: str = "", host: str = "", database: str = "", query: str = ""
    ) -> str:
        own = self.workshop.own
        who = f"{user or self.user}:{quote(password, safe='')}"
        return f"postgresql://{who}@{host or f'{own.host}:{own.port}'}/{database or self.workshop.database}{query}"

    def said(self, url: str, **options: float) -> tuple[str, str]:
        """Why a login by this URL fails, and what mends it."""
        with pytest.raises(ServerFailed) as caught:
            asyncio.run(self.knock(url, **options))
        for text in (str(caught.value), repr(caught.value)):
            assert SECRET not in text
            assert quote(SECRET, safe="") not in text
        return caught.value.why, caught.value.remedy

    async def knock(self, url: str, **options: float) -> Endpoint:
        own, mine = self.workshop.own, Login("shown")
        host, port = own.host, own.port
        if "@127.0.0.1:" in url:
            port = int(url.rpartition("@127.0.0.1:")[2].partition("/")[0])
        elif ".invalid" in url:
            host = "nowhere.invalid"
        given = Endpoint("url", "", host, port, "", mine, mine, url=url)
        return await login.first_login(given, application_name="door", **options)

    def does(self, statement: str) -> None:
        """Executes a statement as the superuser."""

        async def go() -> None:
            async with self.workshop.superuser() as superuser:
                await superuser.execute(statement)

        asyncio.run(go())


@pytest.fixture
def door(workshop: Workshop) -> Iterator[Door]:
    door = Door(workshop, f"knocker_of_{workshop.database}")
    quoted = SECRET.replace("'", "''")
    door.does(f"create role {door.user} login password '{quoted}'")
    door.does(f"grant create on database {workshop.database} to {door.user}")
    yield door
    door.does(f"begin read write; drop owned by {door.user}; drop role {door.user}; commit")


def test_who_may_come_in_is_told_what_there_is(door: Door) -> None:
    found = asyncio.run(door.knock(door.url()))
    own = door.workshop.own
    assert (found.version, found.database) == (own.version, door.workshop.database)
    assert found.max_connections - found.reserved_connections > 50
    assert found.limited == ""


def test_nobody_listens(door: Door) -> None:
    why, remedy = door.said(door.url(host="127.0.0.1:1"))
    assert why.startswith("127.0.0.1:1 refused the connection (")
    assert remedy == "start the server, or check host and port in the URL"


def test_nobody_answers(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "SECONDS_TO_CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        why, remedy = door.said(door.url(host=f"127.0.0.1:{port}"))
    assert why.startswith(f"127.0.0.1:{port} did not answer within ")
    assert remedy == "check host, port and firewall in the URL"


def test_no_such_host(door: Door) -> None:
    why, remedy = door.said(door.url(host="nowhere.invalid"))
    assert why.startswith("the host of nowhere.invalid:")
    assert "is not known (" in why
    assert remedy == "check the host name in the URL"


def test_wrong_password_and_unknown_user(door: Door) -> None:
    place = f"{door.workshop.own.host}:{door.workshop.own.port}"
    hint = "check user and password in the URL; a server may also refuse by address or ask for TLS (pg_hba.conf)"
    assert door.said(door.url(SECRET + "!")) == (
        f'{place} refused the login: password authentication failed for user "{door.user}"',
        hint,
    )
    assert door.said(door.url(user="nobody")) == (
        f'{place} refused the login: password authentication failed for user "nobody"',
        hint,
    )


def test_no_user_in_the_url(door: Door) -> None:
    own = door.workshop.own
    why, remedy = door.said(f"postgresql://{own.host}:{own.port}/{own.database}")
    assert "refused the login" in why
    assert remedy.startswith("name the user in the URL (postgresql://user:password@…); without one it is ")


def test_no_user_in_the_url_and_none_of_the_system(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number that its /etc/passwd does not hold."""
    own = door.workshop.own
    for name in ("PGUSER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(login.os, "getuid", lambda: 54321)
    place = f"{own.host}:{own.port}"
    assert door.said(f"postgresql://{place}/{own.database}") == (
        f"the URL of {place} names no user, and the one that pytest runs as has no name",
        "name the user in the URL (postgresql://user:password@…)",
    )
    assert asyncio.run(door.knock(door.url())).database == door.workshop.database
    monkeypatch.setenv("PGUSER", "ann")
    why, remedy = door.said(f"postgresql://{place}/{own.database}")
    assert "refused the login" in why
    assert remedy == "name the user in the URL (postgresql://user:password@…); without one it is 'ann'"


def test_no_such_database(door: Door) -> None:
    why, remedy = door.said(door.url(database="missing"))
    assert why.endswith(': database "missing" does not exist')
    assert remedy == "create the database (createdb), or check its name in the URL"


def test_no_right_to_create_schemas(door: Door) -> None:
    own, database = door.workshop.own, door.workshop.database
    door.does(f"revoke create on database {database} from {door.user}")
    assert door.said(door.url()) == (
        f'role "{door.user}" may not create schemas in database "{database}" at {own.host}:{own.port}',
        f'as its owner: GRANT CREATE ON DATABASE "{database}" TO "{door.user}"',
    )


def test_read_only_by_a_setting(door: Door) -> None:
    door.does(f"alter database {door.workshop.database} set default_transaction_read_only = on")
    why, remedy = door.said(door.url())
    assert why.endswith(" is read-only (default_transaction_read_only): no schema can be made there")
    assert remedy == "give the URL of the primary, or of a server for tests, in --pgdbm-url"


def test_no_connection_left(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "SECONDS_TO_WAIT", 1)
    door.does(f"alter role {door.user} connection limit 0")
    why, remedy = door.said(door.url())
    assert why.endswith(f' has no connection left: too many connections for role "{door.user}" (for 1 seconds)')
    assert remedy == (
        "raise the limit (max_connections, or CONNECTION LIMIT of the role or database), end other clients, or use"
        " fewer workers (-n)"
    )


@pytest.mark.parametrize("of", ["role", "database"])
def test_too_few_connections(door: Door, of: str) -> None:
    name = door.user if of == "role" else door.workshop.database
    door.does(f"alter {of} {name} connection limit 2")
    why, remedy = door.said(door.url())
    place = f"{door.workshop.own.host}:{door.workshop.own.port}"
    assert why == (
        f'{place} gives role "{door.user}" 2 connections in database "{door.workshop.database}", and a run needs 3 at'
        " least"
    )
    assert remedy == f'ALTER ROLE "{door.user}" CONNECTION LIMIT -1, and the same for the database'
    door.does(f"alter {of} {name} connection limit 7")
    found = asyncio.run(door.knock(door.url()))
    assert (found.max_connections, found.reserved_connections) == (7, 0)
    assert found.limited == f'{of.upper()} "{name}"'
    door.does(f"alter {of} {name} connection limit -1")


def test_tls_is_asked_for_and_not_offered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    why, remedy = door.said(door.url(query="?sslmode=require"))
    assert " does not offer TLS, which the URL or PGSSLMODE asks for (" in why
    assert remedy == (
        "turn ssl on at the server, or leave sslmode out of the URL, and PGSSLMODE out of the environment"
    )
    with monkeypatch.context() as environment:
        environment.setenv("PGSSLMODE", "require")
        assert door.said(door.url())[0] == why


def test_another_kind_of_server_is_asked_for(door: Door) -> None:
    why, remedy = door.said(door.url(query="?target_session_attrs=standby"))
    assert why.endswith(" is not such a server as target_session_attrs in the URL asks for")
    assert remedy == "give another server's URL"


def test_a_server_that_starts_is_waited_for(door: Door) -> None:
    """Until then nobody listens, as with a container; without patience it fails at once."""

    async def go() -> str:
        own = door.workshop.own
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        knocking = asyncio.ensure_future(door.knock(door.url(host=f"127.0.0.1:{port}"), patience=10.0))
        await asyncio.sleep(0.2)
        assert not knocking.done()

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(own.host, own.port)
            await asyncio.gather(_copy(reader, back), _copy(there, writer))

        async with await asyncio.start_server(forward, "127.0.0.1", port):
            return (await knocking).version

    assert asyncio.run(go()) == door.workshop.own.version


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: tuple[bytes, bytes] = (b"", b"")
) -> None:
    while data := await reader.read(65536):
        writer.write(data.replace(*change))
        await writer.drain()
    writer.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def refused(door: Door, answer: Answer, query: str = "") -> ServerFailed:
    """Why a login fails at a server that answers so."""

    async def go() -> ServerFailed:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ServerFailed) as caught:
                await door.knock(door.url(host=f"127.0.0.1:{port}", query=query))
            return caught.value

    return asyncio.run(go())


def test_a_server_that_is_too_old_is_refused_by_its_version(door: Door) -> None:
    """The server at hand, whose greeting is changed on the way."""
    own = door.workshop.own
    major = b"server_version\0" + own.version[:2].encode()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(own.host, own.port)
        await asyncio.gather(_copy(reader, back), _copy(there, writer, (major, b"server_version\0" + b"13")))

    failed = refused(door, forward)
    assert failed.why == "the server is PostgreSQL 13, and pytest-pgdbm needs 14 or later"
    assert failed.remedy == "use a newer server, or leave --pgdbm-url out for one of the plugin's own"


def test_a_pooler_between_is_told(door: Door) -> None:
    """As pgbouncer answers: it knows few parameters of a session."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4), "big")
        body = await reader.readexactly(length - 4)
        if body[:4] == (80877103).to_bytes(4, "big"):  # no TLS
            writer.write(b"N")
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        fields = b"SFATAL\0C08P01\0Munsupported startup parameter: jit\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        await writer.drain()
        writer.close()

    failed = refused(door, answer)
    assert failed.why.endswith(" is a connection pooler that refuses a connection (unsupported startup parameter: jit)")
    assert failed.remedy == (
        "let the pooler drop what it does not know; in pgbouncer.ini: ignore_startup_parameters = search_path,jit,"
        "statement_timeout,lock_timeout,idle_in_transaction_session_timeout,idle_session_timeout,transaction_timeout;"
        " or give the server's own address in the URL"
    )


@pytest.mark.parametrize("query", ["", "?sslmode=disable"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["nothing", "a web server"])
def test_what_takes_the_connection_and_is_no_server_is_told(door: Door, answer: bytes, query: str) -> None:
    """As a tunnel or a container's published port does whose server is not there."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(answer)
        writer.close()

    failed = refused(door, hang_up, query)
    assert " takes the connection, but does not answer as a PostgreSQL server does (" in failed.why
    assert failed.remedy == (
        "check host and port in the URL, and that the server behind a tunnel, proxy or published port runs"
    )


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("?sslmode=nonsense", "`sslmode` parameter must be one of:"),
        ("?sslrootcert=/nowhere&sslmode=verify-full", "a file that the URL asks for is not there, a certificate"),
        ("?unknown_setting=1", 'unrecognized configuration parameter "unknown_setting"'),
    ],
)
def test_a_setting_of_the_url_that_is_wrong_is_told(door: Door, rest: str, said: str) -> None:
    assert said in door.said(door.url(query=rest))[0]


class _Standby(EmbeddedServer):
    """A server of the plugin's kind that waits for what its primary, of whom it has a copy, will do."""

    def _serve(self, made: embedded._Made) -> embedded.Started:
        signal = made.data / "standby.signal"
        signal.touch()
        if made.account is not None:
            embedded.os.chown(signal, made.account.uid, made.account.gid)
        return super()._serve(made)


def _set(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    usual = embedded.settings
    monkeypatch.setattr(embedded, "settings", lambda major: {**usual(major), **changed})


def _url_of(server: EmbeddedServer, admin: Login) -> str:
    started = server.start()
    return f"postgresql://{admin.user}:{quote(admin.password or '')}@{started.host}:{started.port}/postgres"


def test_a_standby_is_told(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, wal_level="replica", max_wal_senders="10")
    run = a_run(tmp_path)
    run.folder.mkdir(mode=0o700)
    new_record(run.folder)
    job = a_job(run)
    server = _Standby(job)
    try:
        url = _url_of(server, job.admin)
        why, remedy = door.said(url)
        place = f"127.0.0.1:{url.rpartition(':')[2].partition('/')[0]}"
        assert why == f"the server at {place} is a read-only standby: no schema can be made there"
        assert remedy == "give the URL of the primary, or of a server for tests, in --pgdbm-url"
        assert door.said(url + "?target_session_attrs=primary")[1] == "give another server's URL"
    finally:
        server.stop()


def test_a_prepared_transaction_that_holds_a_schema_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, max_prepared_transactions="2")
    run = a_run(tmp_path)
    run.folder.mkdir(mode=0o700)
    new_record(run.folder)
    job = a_job(run)
    server = EmbeddedServer(job)

    async def go(url: str) -> None:
        async with connected(url) as connection:
            schema, proof = f"pgdbm_{run.id}_main_1_users", Proof(run.id)
            comment = proof.comment("users").replace("'", "''")
            await connection.execute(f"create schema {schema}; comment on schema {schema} is '{comment}'")
            await connection.execute(f"create table {schema}.t (id int)")
            await connection.execute(f"begin; lock table {schema}.t; prepare transaction 'x'")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await drop(connection, [schema], proof, seconds=0.05)
            (holder,) = await find_holders(connection, [schema], "pool")
            assert (str(holder), holder.left_behind) == ("a prepared transaction", False)
            await connection.execute("rollback prepared 'x'")
            assert await drop(connection, [schema], proof) == []

    try:
        asyncio.run(go(_url_of(server, job.admin)))
    finally:
        server.stop()
