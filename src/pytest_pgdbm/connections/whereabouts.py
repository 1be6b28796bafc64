"""Where a connection leads: to which server and database, and whether a later one still leads there.

A tunnel that is opened again, a failover, a host name that stands for several servers: each may lead a later login
elsewhere than the first one, which was looked at. So each is looked at on which the plugin writes.
"""

from __future__ import annotations

import asyncpg

from pytest_pgdbm.connections import guard
from pytest_pgdbm.ground.endpoint import Endpoint, Identity
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.settings import DEFAULT, Setting

# Every role may ask all of it, unless somebody has taken the first function away:
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA
_SYSTEM = "select system_identifier::text from pg_catalog.pg_control_system()"
_REST = """
select oid::text as database, datname::text as name,
    extract(epoch from pg_catalog.pg_postmaster_start_time())::text as started
from pg_catalog.pg_database where datname = pg_catalog.current_database()
"""

_REMEDY = "give a URL that leads to one database for as long as the run lasts, and run the tests again"
_NOT_ALLOWED: Setting[str | None] = Setting(None, DEFAULT)


async def identity(connection: asyncpg.Connection) -> Identity:
    """What tells the connection's server and database from all others, as far as its role may know."""
    try:
        system = await connection.fetchval(_SYSTEM)
    except asyncpg.PostgresError:
        system = ""
    row = await connection.fetchrow(_REST)
    assert row is not None
    return Identity(system, **row)


async def look_again(connection: asyncpg.Connection, endpoint: Endpoint) -> None:
    """Returns if the connection leads to what the first login has looked at; before anything is written over it.

    Another database is refused whatever its name. The same one is asked anew whether tests may run there if its server
    has been started since: a copy of a server has the same system identifier. Raises ConnectionError otherwise, with
    what was found.
    """
    before = endpoint.identity
    if before is None:  # a server of our own
        return
    now = await identity(connection)
    if now == before:
        return
    place = endpoint.admin_place or f"{endpoint.host}:{endpoint.port}"
    if (now.system, now.database) != (before.system, before.database):
        raise ConnectionError(
            f"{place} does not lead to where it led when the run began, {_told(before)}, but to {_told(now)}"
            f"{await guard.behind(connection, place)}; nothing was written there\n  to mend it: {_REMEDY}"
        )
    if not (endpoint.allowed and now.name == before.name):
        await _check(connection, now.name, place)


async def _check(connection: asyncpg.Connection, database: str, place: str) -> None:
    try:
        await guard.check(connection, database, place, _NOT_ALLOWED)
    except ServerFailed as error:
        raise ConnectionError(
            f"since the run began {place} was started again, or leads to another server: {error}"
        ) from error


def _told(found: Identity) -> str:
    system = f", system identifier {found.system}" if found.system else ""
    return f"database {guard.plain(quote_ident(found.name))} (oid {found.database}{system})"
