"""Ends the sessions of a pool without its loop, which may stand still or be blocked."""

from __future__ import annotations

import contextlib
import os
import socket

import asyncpg

from pytest_pgdbm.connections.parking import private


def hang_up(pool: asyncpg.Pool) -> None:
    """Has the server end the sessions of a pool that nobody uses any more, from any thread.

    Its connections learn of it when their loop runs; whoever has that loop then calls `terminate`.
    """
    for transport in private.transports(pool):
        with contextlib.suppress(OSError, AttributeError, NotImplementedError):  # it has been closed
            _shut_down(transport.get_extra_info("socket").fileno())


def _shut_down(number: int) -> None:
    # A descriptor of its own: the loop may close the other one at any moment. uvloop's sockets cannot be shut down.
    with socket.socket(fileno=os.dup(number)) as end:
        end.shutdown(socket.SHUT_RDWR)
