"""Who still holds a lock on a schema that is to go, and how that ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

# One test's statements are over when its schemas are given back, so whoever holds a lock there was left behind.
_HOLDERS = """
select a.pid, coalesce(a.application_name, '') as application, coalesce(a.state, '') as state,
    coalesce(a.query, '') as query
from pg_catalog.pg_stat_activity a
where a.pid <> pg_backend_pid() and a.pid in (
    select l.pid from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where l.database = (select oid from pg_catalog.pg_database where datname = current_database())
        and n.nspname = any($1) and l.granted
) and a.backend_type = 'client backend' and pg_catalog.pg_has_role(session_user, a.usesysid, 'member')
"""


@dataclass(frozen=True)
class Holder:
    """A connection that held a lock: its server process, what it calls itself, its state and last query."""

    pid: int
    application: str
    state: str
    query: str


async def end_holders(connection: asyncpg.Connection, schemas: Sequence[str]) -> list[Holder]:
    """Ends the connections that hold locks on relations of these schemas; returns who they were."""
    holders = [Holder(**row) for row in await connection.fetch(_HOLDERS, list(schemas))]
    if holders:
        pids = [holder.pid for holder in holders]
        # Waits, bounded, until each is gone (PostgreSQL 14): https://www.postgresql.org/docs/current/functions-admin.html
        await connection.execute(
            "select pg_terminate_backend(pid, 5000) from unnest($1::int[]) pid", pids
        )
    return holders
