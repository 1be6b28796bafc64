"""A server that loops come and go on."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from connections.loops import KINDS, Loops, Server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of these tests' own."""
    server = Server(tmp_path_factory.mktemp("parking"))
    yield server
    gc.collect()  # what was not closed warns now, and warnings are errors
    server.stop()


@pytest.fixture(params=["tcp-asyncio", "unix-asyncio", "tcp-debug", "tcp-uvloop", "unix-uvloop"])
def loops(request: pytest.FixtureRequest, server: Server) -> Iterator[Loops]:
    over, kind = request.param.split("-")
    yield from closed(Loops(getattr(server, over), KINDS[kind]))


@pytest.fixture
def plainly(server: Server) -> Iterator[Loops]:
    """For what does not depend on the kind of loop."""
    yield from closed(Loops(server.unix))


def closed(loops: Loops) -> Iterator[Loops]:
    yield loops
    loops.parked.close()
