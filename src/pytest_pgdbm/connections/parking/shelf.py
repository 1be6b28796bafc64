"""The sockets of sessions that no loop has."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import NamedTuple

from pytest_pgdbm.connections.parking.login import TERMINATE, Login

SECONDS_PARKED = 30.0
"""How long a session waits for the next loop. A firewall forgets quiet connections; not as soon as this."""

SECONDS_OF_LIFE = 600.0
"""How old a session may become: its server process collects what it saw of the catalogs."""


class Parked(NamedTuple):
    """The socket of a session that nobody uses; the times are of the monotonic clock."""

    socket: socket.socket
    login: Login
    replay: bytes
    born: float
    since: float
    process: int

    @classmethod
    def from_transport(cls, transport: object, login: Login, replay: bytes, born: float) -> Parked:
        """Of the transport's socket, which stays open when the transport is aborted."""
        number = transport.get_extra_info("socket").fileno()  # type: ignore[attr-defined]
        kept = socket.socket(fileno=os.dup(number))
        kept.setblocking(False)
        return cls(kept, login, replay, born, time.monotonic(), os.getpid())

    def is_fit(self) -> bool:
        """Whether it can be revived: young enough, ours, and with nothing to be read: no farewell of the server."""
        return self.is_young() and self._is_ours() and self._is_quiet()

    def is_young(self) -> bool:
        """Whether it may be kept for longer."""
        now = time.monotonic()
        return now < self.since + SECONDS_PARKED and now < self.born + SECONDS_OF_LIFE

    def end(self) -> None:
        """Ends the session. A forked process only lets go of it."""
        if self._is_ours():
            with contextlib.suppress(OSError):
                self.socket.send(TERMINATE)
        self.socket.close()

    def _is_ours(self) -> bool:
        return self.process == os.getpid()

    def _is_quiet(self) -> bool:
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class Shelf:
    """The parked sessions, the last one first, so that those that nobody needs grow old; for any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parked: list[Parked] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._parked)

    def put(self, parked: Parked) -> None:
        """Keeps it; or ends it, if there is no room. Those that have become too old are ended."""
        with self._lock:
            every, self._parked = [*self._parked, parked], []
            for each in every:
                if each.is_young() and len(self._parked) < self._limit:
                    self._parked.append(each)
        for each in every:
            if each not in self._parked:
                each.end()

    def take(self) -> Parked | None:
        """One that is fit; those on the way that are not are ended."""
        while (parked := self._pop()) is not None:
            if parked.is_fit():
                return parked
            parked.end()
        return None

    def clear(self) -> None:
        """Ends all of them."""
        while (parked := self._pop()) is not None:
            parked.end()

    def close(self) -> None:
        """The same, and there is no room for any from now on."""
        with self._lock:
            self._limit = 0
        self.clear()

    def _pop(self) -> Parked | None:
        with self._lock:
            return self._parked.pop() if self._parked else None
