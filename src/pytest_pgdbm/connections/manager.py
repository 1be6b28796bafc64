"""The manager that a test gets."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from pgdbm import AsyncDatabaseManager

from pytest_pgdbm.connections.hints import explain
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.ground.errors import UnknownService
from pytest_pgdbm.ground.masks import SecretUrl
from pytest_pgdbm.sql.templates import with_schemas


class Database(AsyncDatabaseManager):
    """A `pgdbm.AsyncDatabaseManager` on a service's throw-away schema.

    Everything that pgdbm's manager does it does, on the pool that all services of the run share. In its SQL
    `{{tables.<service>.<table>}}` finds the schema that stands for another service in this test.
    """

    def __init__(
        self,
        *,
        pool: SharedPool,
        schema: str,
        service: str,
        term: Term,
        names: Mapping[str, str],
        dsn: str,
        path: str | None,
        siblings: Mapping[str, Database],
    ) -> None:
        """Made by the plugin; tests get it from `pgdbm_db`."""
        super().__init__(pool=pool, schema=schema)
        self._shared = pool
        self._service = service
        self._term = term
        self._names = names
        self._dsn = SecretUrl(dsn)
        self._path = path
        self._siblings = siblings

    @property
    def pool(self) -> asyncpg.Pool:
        """The pool of the run: an `asyncpg.Pool` in whatever event loop it is used."""
        return self._shared

    @property
    def dsn(self) -> str:
        """The URL of the database that holds the schema, over TCP; its `repr` hides the password."""
        return self._dsn

    @property
    def service(self) -> str:
        """The name under which the service was asked for."""
        return self._service

    def sibling(self, service: str) -> Database:
        """The manager of another service of the same set, on the schema that this one's tables refer to.

        Raises UnknownService if the set has no such service.
        """
        if service not in self._siblings:
            raise UnknownService(service, self._siblings, advice=self._advice(service))
        return self._siblings[service]

    def _advice(self, stranger: str) -> str:
        if difflib.get_close_matches(str(stranger), self._siblings, n=1):
            return f"siblings of {self._service!r} are the services of its set"
        return (
            f"nothing ties it to {self._service!r}: needs={stranger!r} does, or ask for it by itself:"
            f" pgdbm_db({stranger!r})"
        )

    def prepare_query(self, query: str) -> str:
        """The SQL with pgdbm's templates filled in; `{{tables.orders.items}}` finds this test's orders."""
        return super().prepare_query(with_schemas(query, self._names))

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """A connection of the pool, as pgdbm's own `acquire`.

        Raises LeaseEnded if the test that this manager was made for is over.
        """
        self._term.check()
        async with self._shared.acquire_for(self._term) as connection:
            if self._path is not None:
                await connection.execute(f"SET search_path TO {self._path}")
            try:
                yield connection
            except asyncpg.PostgresError as error:
                explain(error, self._names, self._path)
                raise

    def __repr__(self) -> str:
        """Service and schema."""
        return f"<Database {self._service!r} on schema {self.schema}>"
