"""Connections to the tests' own databases, and how these are made and dropped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is closed afterwards."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def waits_or_is_done(task: asyncio.Future[Any], watching: asyncpg.Connection) -> bool:
    """Returns once somebody waits for a lock in this database, or the task is done; whether it is."""
    waiting = (
        "select from pg_locks where not granted"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    while not task.done() and not await watching.fetch(waiting):
        await asyncio.sleep(0.01)
    return task.done()


@asynccontextmanager
async def drops_held(url: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Holds drops of databases by way of this one where they can no longer be undone.

    What is yielded waits for one to be held, and returns the statement.
    """
    async with connected(url) as stopped, connected(url) as watching:
        os.kill(stopped.get_server_pid(), signal.SIGSTOP)  # all server processes have to close their files first
        try:
            yield partial(_held_drop, watching)
        finally:
            os.kill(stopped.get_server_pid(), signal.SIGCONT)


async def _held_drop(watching: asyncpg.Connection) -> str:
    held = (
        "select query from pg_stat_activity where datname = current_database()"
        " and query ilike 'drop database %' and wait_event = 'ProcSignalBarrier'"
    )
    while (statement := await watching.fetchval(held)) is None:
        await asyncio.sleep(0.01)
    return str(statement)


def execute(url: str, statement: str) -> None:
    """Executes one statement on a connection of its own."""

    async def go() -> None:
        async with connected(url) as connection:
            await connection.execute(statement)

    asyncio.run(go())


def drop_database(url: str, name: str) -> None:
    """Drops a database of the tests', whoever is in it."""
    try:
        execute(url, f'drop database "{name}" with (force)')
    except asyncpg.InsufficientPrivilegeError:  # autovacuum is at work in it, which no ordinary role may end by force
        execute(url, f'drop database "{name}"')
