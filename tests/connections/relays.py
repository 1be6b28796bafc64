"""A way to a server that may lead elsewhere all at once: what a tunnel or a port-forward does that is opened again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes on, byte for byte, what comes to its port, to the place where it leads."""

    def __init__(self, place: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._leads_to = place
        self._open: set[socket.socket] = set()
        self._changing = threading.Lock()
        self.place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """Host and port."""
        threading.Thread(target=self._serve, daemon=True).start()

    def lead_to(self, place: str) -> None:
        """Cuts all connections; those that come from now on lead to this place."""
        with self._changing:
            self._leads_to = place
            for each in self._open:
                _end(each)
            self._open.clear()

    def close(self) -> None:
        """Cuts all connections, and takes no more."""
        _end(self._listener)
        self._listener.close()
        self.lead_to("")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._begin(self._listener.accept()[0])

    def _begin(self, client: socket.socket) -> None:
        host, _, port = self._leads_to.rpartition(":")
        try:
            server = socket.create_connection((host, int(port)))
        except (OSError, ValueError):
            client.close()
            return
        with self._changing:
            self._open |= {client, server}
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _end(sink)
        with self._changing:
            self._open.discard(source)
        source.close()


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relaying(place: str) -> Iterator[Relay]:
    """A relay that leads to this place."""
    relay = Relay(place)
    try:
        yield relay
    finally:
        relay.close()
