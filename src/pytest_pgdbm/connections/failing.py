"""What a connection raises when it, its session or the server fails."""

from __future__ import annotations

import asyncio

import asyncpg

FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # What the server says when it ends a session can come just before a statement is sent; asyncpg is in neither state.
    asyncpg.InternalClientError,
    asyncio.TimeoutError,
    OSError,
)
