"""Grounds for the tests of a module: on the run's server, in a thread of their own."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from databases import connected
from equality import migrations
from equality.ground import Engine, Ground, Recipe, ground_in

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.loop import PrivateLoop
from pytest_pgdbm.fixtures import SESSION
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.names import new_run
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.schemas.home import Recycled
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling.function import Found
from pytest_pgdbm.session import Session

T = TypeVar("T")

_SERVER = pytest.StashKey[Session]()

ALL = Recipe(
    {"depot": migrations.DEPOT_FILES, "shop": migrations.SHOP_FILES, "vault": migrations.VAULT_FILES},
    "shop",
    then=[(True, statement) for statement in migrations.VAULT_BY_SUPERUSER],
)
"""All services."""

SIMPLE = Recipe({"depot": migrations.DEPOT_FILES, "shop": migrations.SHOP_FILES}, "shop")
"""Those that any role can give back."""


class AsPlugin:
    """What the plugin itself uses: messages that nobody waits for, and what goes on from where those end.

    Every other time the latter does all of it, `awaited`, as where the former cannot be sent.
    """

    def __init__(self, ground: Ground) -> None:
        self.home = ground.home
        self.awaited = False

    async def settle_in(self, built: BuiltSet) -> None:
        await self.home.settle_in(built)

    async def recycle(self, built: BuiltSet) -> Recycled:
        awaited, self.awaited = self.awaited, not self.awaited
        if awaited:
            return await self.home.recycle(built)
        came: asyncio.Future[tuple[bool, Found | None]] = asyncio.get_running_loop().create_future()
        assert self.home.begin(built, time.monotonic(), lambda *what: came.set_result(what))
        while not came.done():
            self.home.go_on()
            await asyncio.sleep(0.0005)
        as_it_was, found = came.result()
        return Recycled(built) if as_it_was else await self.home.recycle(built, found=found)


class Yard:
    """A ground, and the thread in which all is done with it."""

    def __init__(self, ground: Ground, loop: PrivateLoop) -> None:
        self.ground = ground
        self._loop = loop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Does it."""
        return self._loop.run(work)


@contextmanager
def yard_on(
    server: Endpoint,
    folder: Path,
    recipe: Recipe,
    *,
    own: bool,
    engine: Callable[[Ground], Engine] = AsPlugin,
    other: str | None = None,
) -> Iterator[Yard]:
    """A yard, of which nothing is left."""
    loop = PrivateLoop()
    stack = AsyncExitStack()
    try:
        opening = ground_in(folder, server, recipe, own=own, engine=engine, other=other)
        yield Yard(loop.run(stack.enter_async_context(opening)), loop)
    finally:
        loop.run(stack.aclose())
        loop.close()


def server_of(request: pytest.FixtureRequest) -> Endpoint:
    """A server that no other worker uses, whose transactions would keep pages from being pruned at times.

    It is like the run's, but that nothing is vacuumed by itself, and ends with the run.
    """
    config = request.config
    if _SERVER not in config.stash:
        run = new_run()
        folder = Path(tempfile.gettempdir(), f"pgdbm-{os.getuid()}-{run}")
        session = Session(config.stash[SESSION].settings, lambda: Run(run, folder))
        config.add_cleanup(session.close)
        with closing(PrivateLoop()) as loop:
            loop.run(_vacuum_nothing(session._get_endpoint()))
        config.stash[_SERVER] = session
    return config.stash[_SERVER]._get_endpoint()


async def _vacuum_nothing(server: Endpoint) -> None:
    # It would come in between, and hold rows for a moment that a page is about to be pruned of.
    assert server.own, "the settings of somebody's server are not to be changed"
    async with connected(login.dsn(server, server.database, server.admin)) as connection:
        await connection.execute("alter system set autovacuum = off")
        await connection.execute("select pg_reload_conf()")
