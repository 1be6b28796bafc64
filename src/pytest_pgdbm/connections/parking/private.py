"""What is used of asyncpg that asyncpg does not promise: every such name stands here.

Beside these names it leans on this: a pool asks one callable for its connections, and each connection, by the methods
`create_connection` and `create_unix_connection` of the loop that it is given, for its transport and nothing more; it
has one settings object for its life; and it logs in by one write.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import asyncpg

TESTED = ((0, 30), (0, 32))
"""The oldest and the newest asyncpg with which this was tested. With others connections are opened as ever."""

Connect = Callable[..., Awaitable[asyncpg.Connection]]


def unsupported() -> str:
    """Why connections cannot be parked here; empty if they can, as far as is known without trying."""
    if sys.platform == "win32":
        return "a socket does not survive the end of its transport on Windows"
    if not _is_known():
        return f"asyncpg {asyncpg.__version__} is not one that this was tested with"
    return ""


def _is_known() -> bool:
    version = tuple(int(number) for number in asyncpg.__version__.split(".")[:2])
    return TESTED[0] <= version <= TESTED[1]


def connect_by(pool: asyncpg.Pool, connect: Connect) -> None:
    """Has the pool open connections by `connect`, which is called with what did that until now, and its arguments."""
    # A pool takes this as the argument `connect` when it is created; pgdbm creates pools without it.
    pool._connect = partial(connect, pool._connect)


def was_expired(pool: asyncpg.Pool) -> bool:
    """Whether its `expire_connections()` was ever called."""
    return bool(pool._generation)


def prepared(connection: asyncpg.Connection) -> int:
    """How many statements asyncpg takes for prepared in the connection's session; 0 with an asyncpg that is not known.

    A session can have more: those that a user holds, or that are to be closed by the next message.
    """
    if not _is_known():
        return 0
    return sum(not statement.closed for statement in connection._stmt_cache.iter_statements())


def belongs_to(connection: asyncpg.Connection, loop: asyncio.AbstractEventLoop) -> None:
    """Gives the connection its real loop: by a task of it, and a connection in it, asyncpg cancels a statement."""
    connection._loop = loop


def transports(pool: asyncpg.Pool) -> Iterator[asyncio.BaseTransport]:
    """Those of the pool's connections."""
    for holder in pool._holders:
        connection = holder._con
        if connection is not None and connection._transport is not None:
            yield connection._transport
