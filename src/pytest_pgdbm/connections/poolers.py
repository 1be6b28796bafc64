"""What is between a URL and its server: nothing, a pooler that lends sessions, or one that lends transactions.

Locks, session settings and `LISTEN` belong to a session of the server. A pooler in transaction mode gives each
transaction to whichever session is free: https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from pytest_pgdbm.connections.path import SERVICE, SearchPath
from pytest_pgdbm.ground.endpoint import Endpoint, Login, Pooling
from pytest_pgdbm.ground.errors import ConfigError, ServerFailed
from pytest_pgdbm.ground.names import quote_ident

SECONDS_FOR_A_SESSION = 10.0
"""How long a pooler may take until it has a second session to lend."""

# One is enough where nobody else uses the pooler.
_ROUNDS = 3
_PID = "select pg_catalog.pg_backend_pid()"

ADMIN_URL = "--pgdbm-admin-url (PGDBM_ADMIN_URL, pgdbm_admin_url)"

DROPPED = "search_path,jit,statement_timeout,lock_timeout,idle_in_transaction_session_timeout"
"""The startup parameters of pgdbm's pools that PgBouncer does not know."""
OWN_DROPPED = f"{DROPPED},idle_session_timeout,transaction_timeout"
"""The same with those of the plugin's own connections."""

_IGNORE = "let the pooler drop what it does not know; in pgbouncer.ini: ignore_startup_parameters = "

Connect = Callable[[], Awaitable[asyncpg.Connection]]


async def pooling(connection: asyncpg.Connection, connect: Connect, place: str) -> Pooling:
    """What is between a connection and its server; `connect` makes another one by the same URL.

    Neither may have prepared statements that outlast their query. Raises ServerFailed for a pooler that has no second
    session.
    """
    # A pooler that hands sessions on must know each client by a key of its own, or could not cancel its queries:
    # https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
    if connection.get_server_pid() == await connection.fetchval(_PID):
        return "none"
    async with _closing(connect) as other:
        try:
            return await asyncio.wait_for(_kind(connection, other), SECONDS_FOR_A_SESSION)
        except (TimeoutError, asyncio.TimeoutError) as error:
            other.terminate()
            raise ServerFailed(
                f"{place} is a connection pooler that had no second session for {SECONDS_FOR_A_SESSION:g} seconds",
                "raise its default_pool_size (PgBouncer), or give the server's own address in the URL",
            ) from error


async def _kind(one: asyncpg.Connection, other: asyncpg.Connection) -> Pooling:
    for _ in range(_ROUNDS):
        mine = await one.fetchval(_PID)
        # The free session that was used last is lent first; or else each in turn, and then these two differ.
        if mine != await one.fetchval(_PID):
            return "transaction"
        try:
            await other.execute("begin")
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if "statement pooling" not in str(error):
                raise
            return "transaction"
        try:
            # Now it can be lent to nobody else, and should not have been free.
            if mine == await other.fetchval(_PID) or mine != await one.fetchval(_PID):
                return "transaction"
        finally:
            await other.execute("rollback")
    return "session"


async def is_same_database(direct: asyncpg.Connection, tests: asyncpg.Connection) -> bool:
    """Whether two connections are to one database of one server, whatever is between.

    Asks for nothing that needs a right: an advisory lock is seen by the sessions of its database, and by no others.
    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """
    key = secrets.randbits(63)
    async with direct.transaction():
        await direct.execute(f"select pg_catalog.pg_advisory_xact_lock({key})")
        return not await tests.fetchval(f"select pg_catalog.pg_try_advisory_xact_lock({key})")


async def find(
    endpoint: Endpoint, direct: asyncpg.Connection, place: str, connect: Callable[[str], Awaitable[asyncpg.Connection]]
) -> Endpoint:
    """The endpoint with what is between its URLs and the server; `direct` is a connection by the administration's.

    `connect` makes a connection by a URL that leaves nothing behind in a pooler's session. Raises ServerFailed where
    the plugin would have no session, and where the two URLs do not lead to one database.
    """
    assert endpoint.url is not None
    admin_url = endpoint.admin_url or endpoint.url
    found = await pooling(direct, lambda: connect(admin_url), place)
    if found == "transaction":
        raise _no_session(endpoint, place)
    if endpoint.admin_url is None:
        return dataclasses.replace(endpoint, pooling=found)
    url, its_place = endpoint.url, f"{endpoint.host}:{endpoint.port}"
    async with _closing(lambda: connect(url)) as tests:
        found = await pooling(tests, lambda: connect(url), its_place)
        await _check_same(direct, tests, place, its_place)
        return dataclasses.replace(await _with_roles(endpoint, direct, tests), pooling=found)


async def _check_same(direct: asyncpg.Connection, tests: asyncpg.Connection, place: str, its_place: str) -> None:
    if await is_same_database(direct, tests):
        return
    one, other = [quote_ident(await each.fetchval("select current_database()")) for each in (tests, direct)]
    raise ServerFailed(
        f"database {one} at {its_place} and database {other} at {place} are not one database of one server: a lock"
        " taken in the one is not seen in the other",
        f"give the address of the server behind the pooler, and the same database, in {ADMIN_URL}",
    )


async def _with_roles(endpoint: Endpoint, direct: asyncpg.Connection, tests: asyncpg.Connection) -> Endpoint:
    """The endpoint with those who administer and test, as the server sees them: a pooler may have its own way."""
    admin, role = [await each.fetchval("select session_user") for each in (direct, tests)]
    administrator = dataclasses.replace(endpoint.admin, user=admin)
    if role == admin:
        return dataclasses.replace(endpoint, admin=administrator, login=administrator)
    if direct.get_settings().is_superuser != "on":
        raise ServerFailed(
            f"the two URLs log in as different roles, {quote_ident(role)} and, by admin-url, {quote_ident(admin)},"
            " which is no superuser: what it makes would not be the tests' own",
            f"log in as {quote_ident(role)} in {ADMIN_URL} too, or as a superuser",
        )
    return dataclasses.replace(endpoint, admin=administrator, login=Login(role))


def _no_session(endpoint: Endpoint, place: str) -> ServerFailed:
    why = (
        f"{place} is a connection pooler in transaction or statement mode: the server process behind a connection"
        " changes from one transaction to the next, so no session is there to hold the plugin's locks and settings"
    )
    if endpoint.admin_url is not None:
        return ServerFailed(why, f"give the server's own address in {ADMIN_URL}")
    return ServerFailed(
        why,
        f"give the server's own address in {ADMIN_URL} as well, or instead in --pgdbm-url; tests then still use the"
        " pooler, or do not",
    )


def refusal(place: str, message: str) -> ServerFailed:
    """What a pooler says that does not take the plugin's startup parameters."""
    return ServerFailed(
        f"{place} is a connection pooler that refuses a connection ({message})",
        f"{_IGNORE}{OWN_DROPPED}; or give the server's own address in the URL",
    )


def dropped(place: str, name: str, found: str) -> ServerFailed:
    """That a setting which the plugin's own work needs does not arrive at the server."""
    return ServerFailed(
        f"{place} is a connection pooler that drops startup parameters: {name} is {found} there, and the plugin's own"
        " work needs it off",
        f"give the server's own address in {ADMIN_URL} as well",
    )


def explained(error: BaseException, endpoint: Endpoint, database: str) -> BaseException:
    """The error with which a pool could not be opened; where that is a pooler's, in words that say what mends it."""
    message = str(error)
    place = f"{endpoint.host}:{endpoint.port}"
    if endpoint.pooling == "none":
        return error
    if "unsupported startup parameter" in message:
        return ServerFailed(f"the pooler at {place} refuses the pool of the tests ({message})", f"{_IGNORE}{DROPPED}")
    if "search_path pin was not applied" in message:
        return _unpinned(endpoint, place, database)
    if database != endpoint.database and "database" in message:
        return ServerFailed(
            f"the pooler at {place} has no way to a database of a test's own ({message})",
            "let it pass on every name; in pgbouncer.ini, under [databases]: * = host=… port=…;"
            " or use isolation 'schema'",
        )
    return error


def _unpinned(endpoint: Endpoint, place: str, database: str) -> ServerFailed:
    role = quote_ident(endpoint.login.user)
    return ServerFailed(
        f"the pooler at {place} drops the search path that pgdbm asks for: names without a schema would be found",
        f"have the server set it: ALTER ROLE {role} IN DATABASE {quote_ident(database)} SET search_path = pg_catalog;"
        " or do without it: pgdbm_search_path = none here, shared_pool_search_path=None in the application",
    )


def check_path(endpoint: Endpoint, path: SearchPath, marked: SearchPath | None) -> None:
    """Raises ConfigError for a search path that has to be set on each connection that a manager takes.

    `path` is the run's, `marked` that of a test's marker.
    """
    if endpoint.pooling != "transaction":
        return
    if marked is not None and marked.entries:
        what = "search_path in the marker"
    elif marked is None and SERVICE in (path.entries or ()):
        what = f"pgdbm_search_path with {SERVICE}"
    else:
        return
    raise ConfigError(
        f"{what} has to be set on a connection, and the pooler at {endpoint.host}:{endpoint.port} keeps no setting from"
        " one transaction to the next; write {{tables.x}} instead, or give the tests the server's own address"
    )


@asynccontextmanager
async def _closing(connect: Connect) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect()
    try:
        yield connection
    finally:
        await connection.close()
