"""Connecting: the addresses that the plugin itself uses, and the first login, which finds out what there is.

pgdbm's own pool retries for three seconds and then names localhost, whatever the URL. So the plugin connects
first, once, with a deadline, and says what is wrong.
"""

from __future__ import annotations

import asyncio
import dataclasses
import getpass
import os
import socket
import ssl
from collections.abc import Callable, Collection
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from pytest_pgdbm.connections import cluster, guard, poolers, whereabouts
from pytest_pgdbm.connections.crowd import Crowd, Wait
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.settings import DEFAULT, OLDEST_SERVER, Setting

_IS_ENDED = (
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.OperatorInterventionError,
    asyncpg.InternalClientError,  # what the server says came just before a statement was sent
    ConnectionError,
)
_ENDED = "see the server's log for who did that, and run the tests again"

SECONDS_TO_CONNECT = 10.0
NOT_GIVEN: Setting[str | None] = Setting(None, DEFAULT)
FEWEST_CONNECTIONS = 3
"""One that builds and drops, and the pool's two."""

SESSION = {
    # Builds and drops take as long as they take; what bounds them is said where they are made.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
}
_REFUSED = (
    OSError,
    ValueError,
    asyncio.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.TargetServerAttributeNotMatched,
)
_STILL_STARTING = (asyncpg.CannotConnectNowError, ConnectionError, asyncpg.ConnectionDoesNotExistError)

# Limits of a role or database are -1 where there are none.
_LIMITS = """
select current_setting('server_version') as version, current_database() as database, current_user as role,
    current_setting('max_connections')::int as most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved,
    session_user as login,
    (select rolconnlimit from pg_catalog.pg_roles where rolname = session_user and not rolsuper) as of_role,
    (select datconnlimit from pg_catalog.pg_database where datname = current_database()) as of_database
"""


def dsn(endpoint: Endpoint, database: str, login: Login) -> str:
    """The URI for the plugin's own connections: by the Unix socket where there is one.

    What the environment might say (PGSSLMODE, PGTARGETSESSIONATTRS) is overruled on servers of our own.
    """
    if endpoint.url is not None:
        return endpoint.admin_url_for(database)
    fixed = "sslmode=disable&target_session_attrs=any"
    if endpoint.socket_dir is None:
        return f"{endpoint.tcp_url(database, login)}?{fixed}"
    who = f"{quote(login.user, safe='')}:{quote(login.password or '', safe='')}"
    where = f"host={quote(endpoint.socket_dir, safe='')}&port={endpoint.port}"
    return f"postgresql://{who}@/{quote(database, safe='')}?{where}&{fixed}"


def pool_dsn(endpoint: Endpoint, database: str) -> str:
    """The URI for the connections of the tests' pool: through the pooler, where there is one."""
    return dsn(endpoint, database, endpoint.login) if endpoint.url is None else endpoint.url_for(database)


async def connect(
    endpoint: Endpoint,
    database: str,
    login: Login,
    *,
    application_name: str,
    settings: dict[str, str] | None = None,
    patience: float | None = None,
    say: Callable[[str], object] = str,
) -> asyncpg.Connection:
    """A connection for the plugin's own work, without time limits on its statements.

    A server that is full is tried again for so many seconds; `say` is told of a long wait. Raises NoConnection
    then, which is a TooManyConnectionsError, too.
    """
    named = {**_session(endpoint), "application_name": application_name, **(settings or {})}
    wait = Crowd(endpoint, say=say).wait(patience)
    return await _let_in(wait, dsn(endpoint, database, login), server_settings=named)


async def _let_in(wait: Wait, url: str, **more: Any) -> asyncpg.Connection:
    while True:
        try:
            return await asyncpg.connect(url, timeout=SECONDS_TO_CONNECT, **more)
        except asyncpg.TooManyConnectionsError as error:
            await wait.pause(str(error))


def _session(endpoint: Endpoint) -> dict[str, str]:
    later = {"transaction_timeout": "0"} if endpoint.version.partition(".")[0] >= "17" else {}
    return SESSION | later


async def first_login(
    endpoint: Endpoint,
    *,
    application_name: str,
    patience: float = 0.0,
    waiting: Collection[str] = (),
    allow: Setting[str | None] = NOT_GIVEN,
) -> Endpoint:
    """Logs in as the administrator and returns the endpoint with what was found: version, limits.

    On a server of our own it makes the ordinary role; on one that was kept it puts the cluster in order, whose
    databases that are `waiting` stay. At a URL the database must be one for tests, or `allow` its name, before
    anything is written. `patience` is for how many seconds a server that is still starting is tried again. Raises
    ServerFailed, with the cause in words and what mends it.
    """
    _check_user(endpoint)
    connection = await _patiently(endpoint, application_name, patience)
    try:
        if not endpoint.own:
            endpoint = await _past_poolers(endpoint, connection, application_name)
        found = await _look(endpoint, connection)
        if endpoint.kept:
            await cluster.check(connection, endpoint.kept, waiting)
        elif endpoint.own:
            await _make_role(connection, endpoint)
        else:
            await guard.check(connection, found.database, _place(endpoint), allow)
            await _check_rights(endpoint, connection)
            known = await whereabouts.identity(connection)
            found = dataclasses.replace(found, identity=known, allowed=allow.value == found.database)
        return dataclasses.replace(found, kept=await cluster.state(connection)) if endpoint.kept == "" else found
    except _IS_ENDED as error:
        raise ServerFailed(f"{_place(endpoint)} ended the connection: {masked(str(error))}", _ENDED) from error
    finally:
        await connection.close()


class _Hints(NamedTuple):
    """What a failure to connect means and what mends it; `sign` is what its message must hold."""

    why: str
    remedy: str | None = None
    sign: str = ""


_NO_TLS = "SSL upgrade"
_NO_POSTGRES = _Hints(
    "{place} takes the connection, but does not answer as a PostgreSQL server does ({message})",
    "check host and port in the URL, and that the server behind a tunnel, proxy or published port runs",
)

# The first that fits counts.
_CAUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], _Hints], ...] = (
    (
        (TimeoutError, asyncio.TimeoutError),
        _Hints(
            f"{{place}} did not answer within {SECONDS_TO_CONNECT:g} seconds",
            "check host, port and firewall in the URL",
        ),
    ),
    (socket.gaierror, _Hints("the host of {place} is not known ({message})", "check the host name in the URL")),
    (ssl.SSLError, _Hints("{place}: TLS failed ({message})", "check sslmode and sslrootcert in the URL")),
    (
        FileNotFoundError,
        _Hints(
            "{place}: a file that the URL asks for is not there, a certificate or the server's socket ({message})",
            "check sslrootcert, sslcert and sslkey in the URL, or start the server whose socket it names",
        ),
    ),
    (
        OSError,
        _Hints(
            "{place} does not offer TLS, which the URL or PGSSLMODE asks for ({message})",
            "turn ssl on at the server, or leave sslmode out of the URL, and PGSSLMODE out of the environment",
            _NO_TLS,
        ),
    ),
    (ConnectionResetError, _NO_POSTGRES),
    (asyncpg.ConnectionDoesNotExistError, _NO_POSTGRES),
    (OSError, _NO_POSTGRES._replace(sign="connection_lost")),
    (
        OSError,
        _Hints(
            "{place} refused the connection ({message})",
            "start the server, or check host and port in the URL",
        ),
    ),
    (
        asyncpg.InvalidCatalogNameError,
        _Hints("{place}: {message}", "create the database (createdb), or check its name in the URL"),
    ),
    (asyncpg.InvalidAuthorizationSpecificationError, _Hints("{place} refused the login: {message}")),
    (
        asyncpg.TooManyConnectionsError,
        _Hints(
            "{place} has no connection left: {message}",
            "raise the limit (max_connections, or CONNECTION LIMIT of the role or database), end other clients, or use"
            " fewer workers (-n)",
        ),
    ),
    (
        asyncpg.TargetServerAttributeNotMatched,
        _Hints("{place} is not such a server as target_session_attrs in the URL asks for", "give another server's URL"),
    ),
)


async def _patiently(endpoint: Endpoint, application_name: str, patience: float) -> asyncpg.Connection:
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            if not endpoint.own:
                return await _connect_plainly(
                    endpoint, dsn(endpoint, endpoint.database, endpoint.admin), application_name
                )
            return await connect(endpoint, endpoint.database, endpoint.admin, application_name=application_name)
        except _REFUSED as error:
            late = asyncio.get_running_loop().time() > deadline
            if late or not isinstance(error, _STILL_STARTING):
                raise _why(endpoint, error) from error
            await asyncio.sleep(0.02)


async def _connect_plainly(endpoint: Endpoint, url: str, application_name: str) -> asyncpg.Connection:
    """A connection that a pooler will take, and that leaves no prepared statement in its sessions."""
    named = {"application_name": application_name}
    return await _let_in(Crowd(endpoint).wait(), url, statement_cache_size=0, server_settings=named)


async def _past_poolers(endpoint: Endpoint, connection: asyncpg.Connection, application_name: str) -> Endpoint:
    async def plainly(url: str) -> asyncpg.Connection:
        try:
            return await _connect_plainly(endpoint, url, application_name)
        except _REFUSED as error:
            raise _why(dataclasses.replace(endpoint, admin_place=""), error) from error

    found = await poolers.find(endpoint, connection, _place(endpoint), plainly)
    if found.admin_url is None and found.pooling == "session":
        await _check_settings_arrive(found, application_name)
    return found


async def _check_settings_arrive(endpoint: Endpoint, application_name: str) -> None:
    try:
        connection = await connect(endpoint, endpoint.database, endpoint.admin, application_name=application_name)
    except _REFUSED as error:
        raise _why(endpoint, error) from error
    try:
        for name in (name for name in SESSION if name.endswith("_timeout")):
            found = await connection.fetchval("select current_setting($1)", name)
            if found != SESSION[name]:
                raise poolers.dropped(_place(endpoint), name, found)
    finally:
        await connection.close()


async def _look(endpoint: Endpoint, connection: asyncpg.Connection) -> Endpoint:
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise ServerFailed(
            f"the server is PostgreSQL {version.major}, and pytest-pgdbm needs {OLDEST_SERVER} or later",
            "use a newer server, or leave --pgdbm-url out for one of the plugin's own",
        )
    row = await connection.fetchrow(_LIMITS)
    assert row is not None
    most, reserved, limited = _room(row)
    if most - reserved < FEWEST_CONNECTIONS:
        raise ServerFailed(
            f"{_place(endpoint)} gives role {quote_ident(row['role'])} {most - reserved} connections in database"
            f" {quote_ident(row['database'])}, and a run needs {FEWEST_CONNECTIONS} at least",
            f"ALTER ROLE {quote_ident(row['role'])} CONNECTION LIMIT -1, and the same for the database",
        )
    return dataclasses.replace(
        endpoint,
        version=row["version"].split()[0],
        database=row["database"],
        max_connections=most,
        reserved_connections=reserved,
        limited=limited,
    )


def _room(row: asyncpg.Record) -> tuple[int, int, str]:
    """How many connections there may be, how many of them are not for us, and what limits them, "" for the server."""
    rooms = [(row["most"] - row["reserved"], "")]
    if (row["of_role"] or -1) >= 0:
        rooms.append((row["of_role"], f"ROLE {quote_ident(row['login'])}"))
    if row["of_database"] >= 0:
        rooms.append((row["of_database"], f"DATABASE {quote_ident(row['database'])}"))
    usable, limited = min(rooms, key=lambda room: room[0])
    return (usable, 0, limited) if limited else (row["most"], row["reserved"], "")


async def _make_role(connection: asyncpg.Connection, endpoint: Endpoint) -> None:
    if endpoint.login == endpoint.admin:
        return
    role, password = endpoint.login.user, endpoint.login.password or ""
    await connection.execute(f"create role {quote_ident(role)} login createdb password {quote_literal(password)}")


async def _check_rights(endpoint: Endpoint, connection: asyncpg.Connection) -> None:
    row = await connection.fetchrow(
        "select pg_is_in_recovery() as standby, current_user as role, current_database() as database,"
        " current_setting('default_transaction_read_only')::bool as read_only,"
        " has_database_privilege(current_database(), 'CREATE') as may_create"
    )
    assert row is not None
    if row["standby"] or row["read_only"]:
        what = "a read-only standby" if row["standby"] else "read-only (default_transaction_read_only)"
        raise ServerFailed(
            f"the server at {_place(endpoint)} is {what}: no schema can be made there",
            "give the URL of the primary, or of a server for tests, in --pgdbm-url",
        )
    if not row["may_create"]:
        database, role = quote_ident(row["database"]), quote_ident(row["role"])
        raise ServerFailed(
            f"role {role} may not create schemas in database {database} at {_place(endpoint)}",
            f"as its owner: GRANT CREATE ON DATABASE {database} TO {role}",
        )


def _why(endpoint: Endpoint, error: Exception) -> ServerFailed:
    place = _place(endpoint)
    message = masked(str(error))
    if "unsupported startup parameter" in message:
        return poolers.refusal(place, message)
    hints = _hints(endpoint, error, message)
    return ServerFailed(hints.why.format(place=place, message=message), hints.remedy or _login_remedy(endpoint))


def _hints(endpoint: Endpoint, error: Exception, message: str) -> _Hints:
    if _NO_TLS in message and not _asks_for_tls(endpoint):
        return _NO_POSTGRES  # asyncpg asks whether there is TLS, and a server says yes or no
    fitting = (hints for kind, hints in _CAUSES if isinstance(error, kind) and hints.sign in message)
    return next(fitting, _Hints("{place}: {message}", "check the URL in --pgdbm-url"))


def _asks_for_tls(endpoint: Endpoint) -> bool:
    """Whether a connection without TLS will not do."""
    given = parse_qs(urlsplit(endpoint.admin_url or endpoint.url or "").query).get("sslmode")
    mode = given[-1] if given else os.environ.get("PGSSLMODE", "prefer")
    return mode in ("require", "verify-ca", "verify-full")


_NAME_IT = "name the user in the URL (postgresql://user:password@…)"


def _check_user(endpoint: Endpoint) -> None:
    """Raises ServerFailed if nothing says who logs in at a URL: neither it nor the system, as in many a container."""
    try:
        _user_of_the_system()
    except (KeyError, OSError, ImportError) as error:
        if not all(_names_user(url) for url in (endpoint.url, endpoint.admin_url) if url is not None):
            why = f"the URL of {_place(endpoint)} names no user, and the one that pytest runs as has no name"
            raise ServerFailed(why, _NAME_IT) from error


def _names_user(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.username or parse_qs(parts.query).get("user"))


def _user_of_the_system() -> str:
    """Who logs in where the URL names no user, to asyncpg as to libpq."""
    return os.environ.get("PGUSER") or getpass.getuser()


def _login_remedy(endpoint: Endpoint) -> str:
    if endpoint.url is not None and not _names_user(endpoint.url):
        return f"{_NAME_IT}; without one it is {_user_of_the_system()!r}"
    return "check user and password in the URL; a server may also refuse by address or ask for TLS (pg_hba.conf)"


def _place(endpoint: Endpoint) -> str:
    if endpoint.admin_place:
        return f"{endpoint.admin_place} (admin-url)"
    return f"{endpoint.host}:{endpoint.port}" + (f" ({endpoint.kind})" if endpoint.own else "")
