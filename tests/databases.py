"""Connections to the tests' own databases, and how these are made and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is closed afterwards."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


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
