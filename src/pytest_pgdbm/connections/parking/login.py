"""What the server says at a login, and how to say it again.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

TERMINATE = b"X" + struct.pack("!i", 4)
_AUTHENTICATION_OK = b"R" + struct.pack("!ii", 8, 0)
_READY = b"Z" + struct.pack("!i", 5) + b"I"


class Login(NamedTuple):
    """What the server told at the login: the names of the settings that it reports, and the key for cancelling.

    `address` is where asyncpg went for it.
    """

    address: tuple[Any, ...]
    names: tuple[str, ...]
    key: bytes

    @classmethod
    def heard(cls, data: bytes, address: tuple[Any, ...]) -> Login | None:
        """From what the server sent; None if that is not, or not yet, a whole login."""
        names, key = [], b""
        for message in _messages(data):
            if message.startswith(b"S"):
                names.append(message[5:].partition(b"\0")[0].decode())
            elif message.startswith(b"K"):
                key = message
            elif message.startswith(b"Z"):
                return cls(address, tuple(names), key) if key else None
        return None

    @property
    def pid(self) -> int:
        """The number of the server process."""
        number: int = struct.unpack_from("!i", self.key, 5)[0]
        return number

    def again(self, settings: Any) -> bytes:
        """A login that succeeds at once, with the settings as they are now."""
        reported = (_parameter(name, getattr(settings, name)) for name in self.names)
        return b"".join([_AUTHENTICATION_OK, *reported, self.key, _READY])


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 5 <= len(data):
        end = at + 1 + struct.unpack_from("!i", data, at + 1)[0]
        yield data[at:end]
        at = end


def _parameter(name: str, value: str) -> bytes:
    body = f"{name}\0{value}\0".encode()
    return b"S" + struct.pack("!i", 4 + len(body)) + body
