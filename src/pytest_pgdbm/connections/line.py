"""A session that is asked without an event loop, by a thread that waits for nothing.

Between two pieces of work the plugin's own session is idle. Lent as a line, it is asked by the thread in which the
tests run: what is sent at the end of a test is read at the end of the next. No task runs for it and no other thread
wakes up, both of which would cost a test more than the work itself. It speaks simple queries:
https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SIMPLE-QUERY
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import asyncpg

_CHUNK = 1 << 16
_INT16, _INT32 = struct.Struct("!h"), struct.Struct("!i")
_QUERY, _ROW, _ERROR, _READY = b"Q", ord("D"), ord("E"), ord("Z")

Row = tuple["str | None", ...]


class Answer(NamedTuple):
    """What the server said to a query: rows of text, or what was wrong."""

    rows: Sequence[Row] = ()
    error: str = ""


Question = tuple[str, Callable[[Answer], None]]
"""A statement, and what is called with the answer to it."""


class Line:
    """The socket of an asyncpg connection, while asyncpg does not use it.

    `lend` and `take_back` are for the connection's loop, the rest is for one thread at a time. `lent` is whether
    asyncpg leaves the socket alone, `broken` whether the other end has gone, `server` the server's major version.
    """

    def __init__(self, transport: Any, server: int) -> None:
        self.server = server
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket").dup()
        self._socket.setblocking(False)
        self._hangup = select.epoll()
        self._hangup.register(self._socket, select.EPOLLRDHUP)
        self._unsent = b""
        self._heard = bytearray()
        self._asked: deque[Callable[[Answer], None]] = deque()
        self._rows: list[Row] = []
        self._error = ""
        self.lent = False
        self.broken = False

    @classmethod
    def of(cls, connection: asyncpg.Connection) -> Line | None:
        """The line of a connection; None where there can be none: through TLS, and where no epoll tells of its end."""
        transport = getattr(connection, "_transport", None)  # asyncpg does not give it away
        if transport is None or transport.get_extra_info("sslcontext") is not None or not hasattr(select, "epoll"):
            return None
        return cls(transport, connection.get_server_version().major)

    def lend(self, hung_up: Callable[[], None]) -> None:
        """Has asyncpg leave the socket alone; `hung_up` is called in the loop once the other end goes away."""
        self.lent = True
        self._transport.pause_reading()
        asyncio.get_running_loop().add_reader(self._hangup.fileno(), hung_up)

    def take_back(self) -> None:
        """Has asyncpg use the socket again, when nothing more is to come."""
        asyncio.get_running_loop().remove_reader(self._hangup.fileno())
        self._transport.resume_reading()
        self.lent = False

    def close(self) -> None:
        """Lets go of the socket; asyncpg has its own hold on it."""
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            asyncio.get_running_loop().remove_reader(self._hangup.fileno())
        self._hangup.close()
        self._socket.close()

    def let_go(self) -> None:
        """In a forked child: this end is the parent's alone."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._socket.fileno(), inheritable=False)
        os.close(nowhere)

    @property
    def is_busy(self) -> bool:
        """Whether answers are to come, or the rest of a message: asyncpg cannot begin in the middle of one."""
        return bool(self._asked or self._heard)

    def ask(self, questions: Sequence[Question]) -> None:
        """Sends statements, each a transaction of its own, which the server works through in order."""
        for statement, heard in questions:
            text = statement.encode() + b"\0"
            self._unsent += _QUERY + _INT32.pack(len(text) + 4) + text
            self._asked.append(heard)
        self._send()

    def listen(self) -> None:
        """Reads what has come by now, and tells those who asked for it."""
        self._send()
        while self.is_busy and (data := self._received()):
            self._heard += data
            self._tell()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True

    def _received(self) -> bytes:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.broken = self.broken or not data
        return data

    def _tell(self) -> None:
        for kind, body in self._messages():
            if kind == _ROW:
                self._rows.append(_row(body))
            elif kind == _ERROR:
                self._error = _message(body)
            elif kind == _READY:
                answer, self._rows, self._error = Answer(self._rows, self._error), [], ""
                self._asked.popleft()(answer)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """What has come whole: https://www.postgresql.org/docs/current/protocol-message-formats.html."""
        while len(self._heard) > 4:
            end = 1 + _INT32.unpack_from(self._heard, 1)[0]
            if end > len(self._heard):
                break
            kind, body = self._heard[0], bytes(self._heard[5:end])
            del self._heard[:end]  # whatever comes of it, it is not told twice
            yield kind, body


def _row(body: bytes) -> Row:
    values: list[str | None] = []
    at = _INT16.size
    for _ in range(_INT16.unpack_from(body)[0]):
        (size,) = _INT32.unpack_from(body, at)
        at += _INT32.size
        values.append(None if size < 0 else body[at : at + size].decode())
        at += max(size, 0)
    return tuple(values)


def _message(body: bytes) -> str:
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return fields.get(b"M", "an error without a message")
