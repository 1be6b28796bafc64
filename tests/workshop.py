"""Building and dropping sets in one process, without an inner run: a database, a home in it, small services.

The conftest makes its fixtures known to all tests.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import select
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from databases import connected, drop_database, drops_held, execute

from pytest_pgdbm import PgdbmServer, Service
from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.crowd import Crowd
from pytest_pgdbm.connections.opening import PGDBM_PATH, Opening
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.seats import Seats
from pytest_pgdbm.fixtures import SESSION
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.leasing.resolver import Asked, Library, Resolver
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.site import Common


class Workshop:
    """A database of a test's own, and what can be built in it.

    `own` is the run's server as the plugin has one of its own, `url` the same as a URL of an ordinary role would
    give it.
    """

    def __init__(self, own: Endpoint, url: str, folder: Path) -> None:
        self.own = own
        self.url = url
        self.folder = folder
        self.database = url.rpartition("/")[2]
        self.run = Run(names.new_run(), folder)
        self._pools: list[SharedPool] = []

    def service(self, name: str, files: Mapping[str, str] | str, **options: Any) -> Service:
        """A service with these migrations; one text is one file."""
        folder = self.folder / "services" / names.identifier(name)[:40]
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in ({"001.sql": files} if isinstance(files, str) else files).items():
            (folder / file).write_text(text, encoding="utf-8")
        return Service(folder, **options)

    def ask(self, name: str, services: Mapping[str, Service]) -> Asked:
        """What a test gets that asks for one of these services."""
        return resolver(self.folder, services).ask(name)

    @asynccontextmanager
    async def home(
        self,
        *,
        own: bool = False,
        url: str | None = None,
        path: str | None = None,
        timeout: float | None = None,
        extensions: Sequence[str] = (),
        worker: str = "main",
    ) -> AsyncIterator[Home]:
        """A place to build in, as the session makes it; by URL, or as on a server of the plugin's own."""
        endpoint = self.own if own else await self.by_url(url or self.url)
        chosen = SearchPath.parse(path)
        application = names.application_name(run=self.run.id, worker=self.run.worker, part="pool")
        opening = Opening(endpoint, self.database, application_name=application, path=chosen, size=4, options={})
        seats = Seats(Crowd(endpoint), 4)
        pool = SharedPool(opening.open, opening.end_backends, opening.clean, min_size=0, max_size=4, seats=seats)
        self._pools.append(pool)
        pinned = chosen.for_pool(PGDBM_PATH)
        run = self.run._replace(worker=worker)
        common = Common(endpoint, run, chosen, pinned, timeout, frozenset(extensions))
        home = Home(common, self.database, pool)
        try:
            yield home
        finally:
            await home.close()
            await pool.close()

    def close(self) -> None:
        """Ends the connections that wait for another loop."""
        for pool in self._pools:
            pool.end()

    async def by_url(self, url: str) -> Endpoint:
        """The endpoint that a URL gives after the first login."""
        mine = login.Login("nobody")
        given = Endpoint("url", "", self.own.host, self.own.port, self.database, mine, mine, url=url)
        return await login.first_login(given, application_name="workshop")

    @asynccontextmanager
    async def superuser(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the server's superuser."""
        async with connected(login.dsn(self.own, self.database, self.own.admin)) as connection:
            yield connection

    @asynccontextmanager
    async def built(
        self, name: str, services: Mapping[str, Service], **options: Any
    ) -> AsyncIterator[tuple[Home, BuiltSet]]:
        """A home with one set built in it."""
        asked = self.ask(name, services)
        async with self.home(**options) as home:
            yield home, await home.build(asked.plan, asked.others)

    async def schemas(self) -> list[str]:
        """The plugin's schemas that are in the database."""
        async with connected(self.url) as connection:
            rows = await connection.fetch("select nspname from pg_namespace where nspname ~ '^pgdbm_' order by 1")
            return [row["nspname"] for row in rows]


def resolver(folder: Path, services: Mapping[str, Service]) -> Resolver:
    """What finds services for a test in this folder, where no declaration says more."""
    test_file = folder / "test_it.py"
    return Resolver(Library(), test_file=test_file, rootdir=folder, offered=services, declarations=[], seeds={})


def hear(home: Home) -> None:
    """Waits for all answers to what was sent to give sets back, and sends nothing more."""
    line = home._site.admin.with_line(lambda line: line)
    assert line is not None
    while line.is_busy:
        select.select([line._socket], [], [], 30)
        line.listen()


async def interrupt_drop(workshop: Workshop, database: str) -> None:
    """Interrupts a drop of this database when it can no longer be undone."""
    async with connected(workshop.url) as dropping, drops_held(workshop.url) as held:
        drop = asyncio.ensure_future(dropping.execute(f"drop database {database}"))
        assert database in await held()
        async with connected(workshop.url) as other:
            await other.execute("select pg_cancel_backend($1)", dropping.get_server_pid())
        with pytest.raises(asyncpg.QueryCanceledError):
            await drop


@pytest.fixture
def workshop(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Workshop]:
    """A workshop in an empty database, owned by an ordinary role."""
    workshop = Workshop(request.config.stash[SESSION]._get_endpoint(), database_url, tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture(scope="module")
def shared_workshop(
    request: pytest.FixtureRequest, pgdbm_server: PgdbmServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workshop]:
    """One for all tests of a module, each of which leaves it as it was."""
    name = f"inner_test_{os.getpid()}_shared_{secrets.token_hex(4)}"
    execute(pgdbm_server.url, f"create database {name}")
    url = pgdbm_server.url.rpartition("/")[0] + "/" + name
    workshop = Workshop(request.config.stash[SESSION]._get_endpoint(), url, tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.close()
    drop_database(pgdbm_server.url, name)
