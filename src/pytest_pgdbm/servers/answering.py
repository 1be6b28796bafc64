"""Whether a Postgres server that is starting lets people in yet."""

from __future__ import annotations

import socket
import struct


def answers(host: str, port: int, user: str, timeout: float = 1.0) -> bool:
    """Whether a Postgres server that lets people in answers there within `timeout` seconds.

    A TCP connection proves nothing: Docker's proxy accepts it before there is a server. So this
    sends what a client sends first. A server that is not ready refuses it with an SQLSTATE of class
    57P0; every other answer, a refusal included, is that of a server that works:
    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
    """
    words = ("user", user, "database", "postgres")
    text = b"".join(word.encode() + b"\0" for word in words) + b"\0"
    try:
        with socket.create_connection((host, port), timeout) as link:
            link.sendall(struct.pack("!ii", 8 + len(text), 3 << 16) + text)
            reply = link.recv(4096)
    except OSError:
        return False
    return reply[:1] == b"R" or (reply[:1] == b"E" and b"\0C57P0" not in reply)
