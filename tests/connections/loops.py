"""One event loop after another on one server, whose connections outlive their loops.

The conftest makes its fixtures known to all tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from keeper.runs import a_job, a_run

from pytest_pgdbm.connections.parking import ParkedConnections
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer

Body = Callable[[asyncpg.Pool], Awaitable[Any]]

PID = "select pg_backend_pid()"
SIZE = 3


class Server:
    """A server of the tests' own that asks for a password (SCRAM) over TCP and over its socket."""

    def __init__(self, folder: Path) -> None:
        run = a_run(folder)
        run.folder.mkdir(mode=0o700)
        new_record(run.folder)
        job = a_job(run)
        self._server = EmbeddedServer(job)
        started = self._server.start()
        self.host, self.port = started.host, started.port
        who = f"{job.admin.user}:{quote(job.admin.password or '')}"
        self.tcp = f"postgresql://{who}@{started.host}:{started.port}/postgres"
        self.unix = f"postgresql://{who}@/postgres?host={quote(started.socket_dir or '')}&port={started.port}"
        self.who = who

    def stop(self) -> None:
        self._server.stop()

    def ask(self, query: str, *args: Any) -> Any:
        """What a connection apart from all others is told."""

        async def asked() -> Any:
            connection = await asyncpg.connect(self.tcp)
            try:
                return await connection.fetchval(query, *args)
            finally:
                await connection.close()

        return asyncio.run(asked())

    def serves(self, *pids: int) -> bool:
        """Whether any of these processes is there."""
        return bool(self.ask("select exists (select from pg_stat_activity where pid = any($1::int[]))", list(pids)))


class Loops:
    """Runs one loop after the other, each with a pool whose connections are parked at its end."""

    def __init__(self, url: str, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        self.url = url
        self.new_loop = new_loop
        self.parked = ParkedConnections(SIZE)
        self.pool_options: dict[str, Any] = {}

    def run(self, body: Body) -> Any:
        """What the body returns, given the pool of a new loop."""
        loop = self.new_loop()
        try:
            return loop.run_until_complete(self._with_pool(body))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def thrice(self, body: Body) -> None:
        """Runs the body in three loops, and sees that one server process serves all."""
        pids = {self.run(_with_pid(body)) for _ in range(3)}
        assert len(pids) == 1
        assert self.parked.off_because == ""

    async def pool(self) -> asyncpg.Pool:
        options = {"min_size": 0, "max_size": SIZE, **self.pool_options}
        pool = await asyncpg.create_pool(self.url, **options)
        self.parked.adopt(pool)
        return pool

    async def _with_pool(self, body: Body) -> Any:
        pool = await self.pool()
        try:
            return await body(pool)
        finally:
            await self.parked.park(pool)
            await asyncio.wait_for(pool.close(), 2)
            await asyncio.sleep(0)


def _with_pid(body: Body) -> Body:
    async def wrapped(pool: asyncpg.Pool) -> int:
        pid = await pool.fetchval(PID)
        await body(pool)
        assert pid == await pool.fetchval(PID)
        return int(pid)

    return wrapped


async def get_pid(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval(PID))


async def get_pids(pool: asyncpg.Pool) -> set[int]:
    """The processes of as many connections as the pool may have, used at once."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.acquire()) for _ in range(SIZE)]
        return set(await asyncio.gather(*(connection.fetchval(PID) for connection in connections)))


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def new_debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


KINDS = {
    "asyncio": asyncio.new_event_loop,
    "debug": new_debug_loop,
    "uvloop": new_uvloop,
}


@pytest.fixture(scope="session")
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
