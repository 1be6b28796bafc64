"""A set of schemas, built and settled in, that is had again as it was at any time: by a copy of its database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from databases import connected
from equality.dumps import Image, Observer
from pg_dump import dump
from workshop import Workshop

from pytest_pgdbm import Service
from pytest_pgdbm.connections import login
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet

CONNECTIONS = 3

# https://www.postgresql.org/docs/current/sql-createdatabase.html
_STRATEGY = " strategy file_copy"

# As the pool cleans a connection when it comes back, and before it is lent to another test.
CLEAN_AT_RELEASE = """
rollback; select pg_advisory_unlock_all(); close all; unlisten *; reset all
"""
CLEAN_BEFORE_TEST = "reset session authorization; discard temp; discard sequences"

# A statement that waits for another connection of the same program would wait for ever.
SETTINGS = {"lock_timeout": "30ms", "client_min_messages": "error"}


_AT_WORK = """
select exists (
    select from pg_catalog.pg_stat_activity
    where datid = (select oid from pg_catalog.pg_database where datname = current_database())
        and pid <> pg_backend_pid() and (backend_xmin is not null or backend_xid is not null)
)
"""


class Outcome(Protocol):
    """What giving back came to: `why` is empty, or says why the set has to be dropped."""

    why: str


class Engine(Protocol):
    """What gives sets back."""

    async def settle_in(self, built: BuiltSet) -> object:
        """Makes a set that was just built leasable."""

    async def recycle(self, built: BuiltSet) -> Outcome:
        """Makes a set as it was when it was first leased, or says why not."""


@dataclass(frozen=True)
class Recipe:
    """What is built: services, one of which is asked for; `then` statements, by a superuser or by the tests' role."""

    services: Mapping[str, Mapping[str, str]]
    ask: str
    then: Sequence[tuple[bool, str]] = ()


class Ground:
    """A set in a database of its own. `own` is as on a server of the plugin's, else by URL for an ordinary role."""

    def __init__(
        self,
        workshop: Workshop,
        recipe: Recipe,
        *,
        own: bool,
        engine: Callable[[Ground], Engine],
        other: str | None = None,
    ) -> None:
        """`other` is a role to make besides, which the role of tests is a member of."""
        self.workshop = workshop
        self.recipe = recipe
        self.own = own
        self.database = workshop.database
        self.role = workshop.own.login.user if own else f"role_of_{workshop.database}"
        self.version = int(workshop.own.version.partition(".")[0])
        self.connections: list[asyncpg.Connection] = []
        self._make_engine = engine
        self._other = other
        self._open = AsyncExitStack()
        self._template = f"{workshop.database}_kept"
        self._first: Image | None = None
        self._first_dump: str | None = None

    @property
    def schemas(self) -> Mapping[str, str]:
        """The schema of each service."""
        return self.built.schemas

    @property
    def first(self) -> Image:
        """What the set was like when it was first leased."""
        assert self._first is not None
        return self._first

    async def build(self) -> None:
        """Builds the set, keeps a copy of its database, and settles it in."""
        await self._make_role()
        await self._make_database("template1")
        services = {
            name: self.workshop.service(f"{name}_{self.own}", files) for name, files in self.recipe.services.items()
        }
        await self._build(services)
        await self._settle()
        self._first = await self.observer.image()
        self._first_dump = await self.dump()
        await self._open.aclose()
        await self._on_server(f"create database {self._template} template {self.database}")
        await self._settle()

    async def restore(self, *, surely: bool = True) -> None:
        """Has all as it was when the set was first leased, whatever was done to its database."""
        await self._open.aclose()
        await self._on_server(f"drop database {self.database} with (force)")
        await self._make_database(self._template)
        await self._settle()
        if surely:
            assert await self.differences() == [], "it does not settle in as it did before"

    async def close(self) -> None:
        """Leaves nothing behind."""
        await self._open.aclose()
        await self._on_server(
            f"drop database if exists {self.database} with (force)",
            f"drop database if exists {self._template}",
        )
        if not self.own:
            await self._on_server(f"drop role if exists {self.role}")
        if self._other:
            await self._on_server(f"drop role if exists {self._other}")

    async def recycle(self) -> str:
        """Gives the set back; returns why it cannot be leased again, if it cannot."""
        return (await self.engine.recycle(self.built)).why

    async def clean(self) -> None:
        """What the pool does with connections before the next test."""
        for at, connection in enumerate(self.connections):
            if connection.is_closed():
                self.connections[at] = await self._connection(at)
            else:
                await connection.execute(f"{CLEAN_AT_RELEASE}; {CLEAN_BEFORE_TEST}; set search_path = {self.path}")

    async def differences(self) -> list[str]:
        """How the set is otherwise than when it was first leased."""
        return await self.observer.differences(self.first)

    async def quiet(self) -> None:
        """Waits until nobody's transaction keeps rows from being pruned: that of a process that is ending, say."""
        for _ in range(1000):
            if not await self.superuser.fetchval(_AT_WORK):
                return
            await asyncio.sleep(0.005)
        raise AssertionError("somebody is at work in the database")

    async def dump(self) -> str:
        """What `pg_dump` says of the set."""
        return await dump(self.workshop.own, self.database, self.schemas)

    async def dumps(self) -> tuple[str, str]:
        """What `pg_dump` said of the set when it was first leased, and says now."""
        assert self._first_dump is not None
        return self._first_dump, await self.dump()

    def sql(self, text: str) -> str:
        """The text with the schema of each service in the place of `<service>`, and the tests' role for `<role>`."""
        text = text.replace("<role>", quote_ident(self.role))
        for service, schema in self.schemas.items():
            text = text.replace(f"<{service}>", quote_ident(schema))
        return text

    @property
    def path(self) -> str:
        """The search path of tests: all schemas of the set, and `public`."""
        return ", ".join([*map(quote_ident, self.schemas.values()), "public"])

    @property
    def _owner(self) -> str:
        return self.role if self.own else self.workshop.own.admin.user

    async def _build(self, services: Mapping[str, Service]) -> None:
        asked = self.workshop.ask(self.recipe.ask, services)
        async with self._home() as home:
            self.built = await home.build(asked.plan, asked.others)
        role = await self._connection(0)
        async with self.workshop.superuser() as superuser:
            await superuser.execute(f"set search_path = {self.path}; set client_min_messages = error")
            for by_superuser, statement in self.recipe.then:
                await (superuser if by_superuser else role).execute(self.sql(statement))
        await role.close()

    async def _settle(self) -> None:
        self._open = AsyncExitStack()
        self.home = await self._open.enter_async_context(self._home())
        self.superuser = await self._open.enter_async_context(self.workshop.superuser())
        self.engine = self._make_engine(self)
        await self.engine.settle_in(self.built)
        self.observer = await Observer.of(self.superuser, self.schemas)
        self.connections = [await self._connection(at) for at in range(CONNECTIONS)]
        self._open.push_async_callback(self._disconnect)

    async def _disconnect(self) -> None:
        for connection in self.connections:
            await _close(connection)

    async def _connection(self, at: int) -> asyncpg.Connection:
        """Of tests that run as an ordinary role; the last one of tests that were given a superuser's rights."""
        server = self.workshop.own
        as_superuser = self.own and at == CONNECTIONS - 1
        url = login.dsn(server, self.database, server.admin) if as_superuser else self._url()
        # A program may deallocate all statements, of which asyncpg would hear nothing.
        connection = await asyncpg.connect(url, server_settings=SETTINGS, statement_cache_size=0)
        await connection.execute(f"set search_path = {self.path}")
        return connection

    @asynccontextmanager
    async def _home(self) -> AsyncIterator[Home]:
        # The same whether the set has just been built or its database was copied.
        async with self.workshop.home(own=self.own, url=self._url()) as home:
            yield home

    def _url(self) -> str:
        if self.own:
            return login.dsn(self.workshop.own, self.database, self.workshop.own.login)
        server = self.workshop.own
        return f"postgresql://{self.role}:{self.role}@{server.host}:{server.port}/{self.database}"

    async def _make_database(self, template: str) -> None:
        await self._on_server(
            f"create database {self.database} template {template} owner {quote_ident(self._owner)}{_STRATEGY}",
            f"grant create on database {self.database} to {quote_ident(self.role)}",
        )

    async def _make_role(self) -> None:
        if not self.own:
            await self._on_server(f"create role {self.role} login password '{self.role}'")
        if self._other:
            await self._on_server(f"create role {self._other}", f"grant {self._other} to {quote_ident(self.role)}")

    async def _on_server(self, *statements: str) -> None:
        server = self.workshop.own
        async with connected(login.dsn(server, server.database, server.admin)) as connection:
            for statement in statements:
                await connection.execute(statement)


@asynccontextmanager
async def ground_in(folder: Path, endpoint: Endpoint, recipe: Recipe, **how: Any) -> AsyncIterator[Ground]:
    """A ground in a database of its own on this server, of which nothing is left."""
    name = f"equality_test_{os.getpid()}_{secrets.token_hex(4)}"
    ground = Ground(Workshop(endpoint, endpoint.tcp_url(name, endpoint.login), folder), recipe, **how)
    try:
        await ground.build()
        yield ground
    finally:
        await ground.close()


async def _close(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        await connection.close(timeout=2)


async def execute(connection: asyncpg.Connection, sql: str, *args: Any) -> str:
    """Runs it; returns what the server said against it, if anything."""
    try:
        await connection.execute(sql, *args)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
