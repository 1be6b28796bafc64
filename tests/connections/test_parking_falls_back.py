"""Connections that outlive their event loop: when they do not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from connections.loops import SIZE, Loops, Server, get_pid, get_pids
from keeper.runs import wait_until

from pytest_pgdbm.connections.parking import private


def fell_back(loops: Loops) -> str:
    """That nothing is kept and all works; returns why."""
    assert loops.run(get_pid) != loops.run(get_pid)
    assert len(loops.run(get_pids)) == SIZE
    assert len(loops.parked) == 0
    loops.parked.close()
    return loops.parked.off_because


@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_encrypted_connections_end_with_their_loop(server: Server, tmp_path: Path, mode: str):
    with standing_before(server, encrypting(tmp_path)) as port:
        loops = Loops(f"postgresql://{server.who}@127.0.0.1:{port}/postgres?sslmode={mode}")
        assert fell_back(loops) == "they are encrypted, and the state of the encryption cannot move"


def test_what_is_behind_a_pooler_is_left_to_it(server: Server):
    with standing_before(server, alter=with_a_key_of_its_own) as port:
        loops = Loops(f"postgresql://{server.who}@127.0.0.1:{port}/postgres?sslmode=disable")
        assert fell_back(loops) == "a revived connection is served by another process than it was told"


@pytest.mark.parametrize("version", ["0.29.0", "0.33.0", "1.0.0rc1"])
def test_an_asyncpg_that_is_not_known_is_left_alone(server: Server, monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setattr(asyncpg, "__version__", version)
    assert fell_back(Loops(server.tcp)) == f"asyncpg {version} is not one that this was tested with"


def test_on_windows_connections_end_with_their_loop(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(private, "sys", SimpleNamespace(platform="win32"))
    assert fell_back(Loops(server.tcp)) == "a socket does not survive the end of its transport on Windows"


def test_a_loop_that_cannot_take_a_socket_over_gets_plain_connections(server: Server):
    class Stubborn(asyncio.SelectorEventLoop):
        async def create_connection(self, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
            if sock is not None:
                raise NotImplementedError("no sockets from outside")
            return await super().create_connection(*args, **kwargs)

    assert fell_back(Loops(server.tcp + "?sslmode=disable", Stubborn)) == (
        "a connection could not be parked and revived: NotImplementedError('no sockets from outside')"
    )


def test_a_pool_that_was_adopted_before_connections_are_opened_as_ever_goes_on(server: Server):
    async def body(pool):
        before = await get_pid(pool)
        loops.parked.close("enough of it")
        return before, await get_pids(pool)

    loops = Loops(server.tcp)
    loops.run(get_pids)
    before, after = loops.run(body)
    assert before in after
    assert len(after) == SIZE
    assert not after & loops.run(get_pids)
    wait_until(lambda: not server.serves(*after))


def test_what_stands_in_asyncpg_s_name_is_not_asked_for_connections(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(asyncpg, "connect")  # as by a test of an application that must not connect by itself
    loops = Loops(server.tcp)
    loops.thrice(get_pid)
    loops.parked.close()


def test_what_the_server_says_to_a_login_reaches_the_caller(server: Server):
    async def refused(pool):
        await pool.fetchval("select 1")

    for url, error in (
        (server.tcp + "x", asyncpg.InvalidCatalogNameError),
        (f"postgresql://nobody:x@{server.host}:{server.port}/postgres", asyncpg.InvalidPasswordError),
        (f"postgresql://{server.who}@{server.host}:1/postgres", ConnectionRefusedError),
    ):
        loops = Loops(url)
        with pytest.raises(error):
            loops.run(refused)
        assert loops.parked.off_because == ""


Greet = Callable[[socket.socket], socket.socket]
Alter = Callable[[bytes], bytes]


@contextlib.contextmanager
def standing_before(server: Server, greet: Greet = lambda client: client, alter: Alter = bytes) -> Iterator[int]:
    """The port of a front of the server, which may greet each client in its own way, and alter what the server says."""

    def serve(client: socket.socket) -> None:
        address = server.host, server.port
        with contextlib.suppress(OSError), client, greet(client) as front, socket.create_connection(address) as behind:
            while _passed_on(front, behind, alter):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                start(serve, listener.accept()[0])

    def start(target: Callable[..., None], *args: Any) -> None:
        threads.append(threading.Thread(target=target, args=args, daemon=True))
        threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def _passed_on(front: socket.socket, behind: socket.socket, alter: Alter) -> bool:
    waiting = isinstance(front, ssl.SSLSocket) and front.pending()
    readable = [front] if waiting else select.select([front, behind], [], [])[0]
    for one, other, change in ((front, behind, bytes), (behind, front, alter)):
        if one in readable:
            data = one.recv(65536)
            if not data:
                return False
            other.sendall(change(data))
    return True


def encrypting(folder: Path) -> Greet:
    """Not every PostgreSQL is built with TLS. https://www.postgresql.org/docs/current/protocol-flow.html"""
    certificate = folder / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def greet(client: socket.socket) -> socket.socket:
        assert struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL)) == (8, 80877103)
        client.sendall(b"S")
        return context.wrap_socket(client, server_side=True)

    return greet


def with_a_key_of_its_own(said: bytes) -> bytes:
    """What a pooler makes of the server's login: the key for cancelling is the pooler's."""
    return re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c\0\0\x47\x11", said, count=1, flags=re.DOTALL)


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEICKo+CcpPuLT7J8J3R0eaXvCxoHnTuXx6v0xKxtbRlyH
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBPjCB8aADAgECAhRNuP4GIRZ1F/cxmi7LThsR4tOdrjAFBgMrZXAwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzEwNDMyMFoYDzIxMjYxMDMwMTA0MzIw
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwKjAFBgMrZXADIQA8oPA+jNo3W8eDYxQK
6WxjIr7MzHX6+Oz0hkCqBcKko6NTMFEwHQYDVR0OBBYEFL7m16U4hgL2hZju91+k
Hh4vHSGMMB8GA1UdIwQYMBaAFL7m16U4hgL2hZju91+kHh4vHSGMMA8GA1UdEwEB
/wQFMAMBAf8wBQYDK2VwA0EAjHrWJSfcH2OP9ATWwqR+q7/ke0D0axwbHfVXwm6u
mE7UAp2oKxdQsuMlkQcxpQI/zK3xm1jurvr1Lc+jbpexCg==
-----END CERTIFICATE-----
"""
"""Signed by itself, and used here only."""
