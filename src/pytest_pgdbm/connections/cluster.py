"""What a run may leave in a cluster beside its databases, and whether it did: for servers that outlive their run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection

import asyncpg

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import is_ours, quote_ident

# Whatever is made, changed or dropped in a catalog changes its number of rows or the newest transaction in them; what
# vacuum does to a row leaves its transaction alone. First the shared catalogs, then those of the database that
# administration uses, as far as all that can be made in it shows in them: each costs a third of a millisecond.
# https://www.postgresql.org/docs/current/catalogs-overview.html
_CATALOGS = (
    *("pg_authid", "pg_auth_members", "pg_db_role_setting", "pg_tablespace", "pg_shdescription"),
    *("pg_namespace", "pg_class", "pg_proc", "pg_type", "pg_extension", "pg_default_acl", "pg_event_trigger"),
)

_REMEDY = "leave --pgdbm-keep-alive out"
_OTHERS = """
select 'pg_database', d.oid::text || d.xmin::text, d.datname from pg_catalog.pg_database d
union all select 'pg_file_settings', sourcefile || name, setting from pg_catalog.pg_file_settings
"""

_END_OWN = """
select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where datname = $1 and usename = current_user
"""

SECONDS = 10.0
"""How long a kept server may take to be put in order; a new one takes less."""


async def check(connection: asyncpg.Connection, wanted: str, waiting: Collection[str] = ()) -> None:
    """Puts a kept server in order: afterwards it is as `state` told when it was new. Raises ServerFailed if it is not.

    The databases that are `waiting` stay. No other run may use the server now.
    """
    try:
        await asyncio.wait_for(clear(connection, waiting), SECONDS)
        found = await asyncio.wait_for(state(connection), SECONDS)
    except FAILURES as error:
        raise ServerFailed(f"the kept server could not be put in order: {error}", _REMEDY) from error
    if found != wanted:
        raise ServerFailed("a run has changed more of the kept server than its own databases", _REMEDY)


async def clear(connection: asyncpg.Connection, waiting: Collection[str] = ()) -> None:
    """Drops the databases that dead runs have left, and ends all connections. No run may use the server now."""
    await connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_catalog.pg_stat_activity"
        " where pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    for row in await connection.fetch("select datname from pg_catalog.pg_database"):
        if is_ours(row["datname"]) and row["datname"] not in waiting:
            await drop_database(connection, row["datname"])


async def drop_database(connection: asyncpg.Connection, name: str, *, force: bool = True) -> None:
    """Drops a database that the plugin made, whoever is in it; without force, only if nobody is."""
    if not is_ours(name):
        raise ValueError(f"{name!r} is not a database of the plugin's")
    statement = f"drop database if exists {quote_ident(name)}"
    if not force:
        await connection.execute(statement)
        return
    try:
        await connection.execute(f"{statement} with (force)")
    except asyncpg.InsufficientPrivilegeError:
        # By force an ordinary role may not end autovacuum's worker, which the plain statement ends by itself.
        await connection.execute(_END_OWN, name)
        await connection.execute(statement)


async def state(connection: asyncpg.Connection) -> str:
    """What stands for all that the cluster has beside the plugin's databases: changed if anything of that was.

    The connection is one of a superuser to the database that administration uses.
    """
    catalogs = [*_CATALOGS, "pg_parameter_acl"] if connection.get_server_version().major >= 15 else _CATALOGS
    counts = " union all ".join(
        f"select '{name}', count(*)::text, max(xmin::text::bigint)::text from pg_catalog.{name}" for name in catalogs
    )
    rows = await connection.fetch(f"{counts} union all {_OTHERS}")
    told = sorted(tuple(map(str, row)) for row in rows if row[0] != "pg_database" or not is_ours(row[2]))
    return hashlib.sha256(repr(told).encode()).hexdigest()
