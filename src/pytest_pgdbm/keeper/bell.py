"""What wakes the keeper: any signal that it catches.

A signal handler may interrupt anything, so it must not take a lock, as setting a `threading.Event` would. The
interpreter itself writes to a socket instead: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket


class Bell:
    """Waits for a signal. One for a process; made in its main thread."""

    def __init__(self) -> None:
        self._ear, self._clapper = socket.socketpair()
        self._ear.setblocking(False)
        self._clapper.setblocking(False)
        signal.set_wakeup_fd(self._clapper.fileno(), warn_on_full_buffer=False)

    def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or at once when a signal comes, or came since the last time."""
        if select.select([self._ear], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(4096)
