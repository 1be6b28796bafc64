"""The server processes that serve a pool's connections: what they are doing, and how they are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.connections.admin import Admin

SECONDS_TO_END = 5.0
"""How long is waited for a connection to end others by; a server process without a client ends by itself, too."""

# Waits, bounded, until each is gone: https://www.postgresql.org/docs/current/functions-admin.html (PostgreSQL 14).
# A process number may serve somebody else by now; the application's name tells.
_END = """
select pid, coalesce(state, '') as state, coalesce(query, '') as query,
    pg_catalog.pg_terminate_backend(pid, 5000) as ended
from pg_catalog.pg_stat_activity
where pid = any($1) and application_name = $2
"""


class Activity(NamedTuple):
    """What a server process was doing: its state as in pg_stat_activity, and its last query."""

    state: str
    query: str


async def end(connection: asyncpg.Connection, pids: Collection[int], *, application: str) -> dict[int, Activity]:
    """Ends server processes; returns what each of those that were still there was doing."""
    rows = await connection.fetch(_END, list(pids), application)
    return {row["pid"]: Activity(row["state"], row["query"]) for row in rows}


async def end_by(admin: Admin, pids: Collection[int], *, application: str) -> dict[int, Activity]:
    """The same by the connection that builds, once it is free; in the private loop. Raises asyncio.TimeoutError."""

    async def go() -> dict[int, Activity]:
        async with admin.administrator() as connection:
            return await end(connection, pids, application=application)

    return await asyncio.wait_for(go(), SECONDS_TO_END)
