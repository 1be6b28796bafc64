"""What pgdbm's migration runner is given: one connection that notes which file it is at, and what went wrong.

It also has taken down what is sent to the server, see `recording`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import asyncpg
from pgdbm import AsyncDatabaseManager

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.schemas.recording import Recorder
from pytest_pgdbm.services.files import SqlFile
from pytest_pgdbm.sql.scan import with_existing_extensions
from pytest_pgdbm.sql.templates import with_schemas

AfterFile = Callable[[SqlFile], Awaitable[None]]
"""Called when a migration has run, in its transaction; what it raises undoes the migration."""

# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
_NOTHING_WRITTEN = "select pg_catalog.pg_current_xact_id_if_assigned() is null"

# As pgdbm's AsyncMigrationManager looks for it.
_NO_TRANSACTION = re.compile(r"^-- pgdbm:no-transaction(?=\s|$)", re.MULTILINE)


@dataclass
class Spot:
    """Where in the migrations a connection is: the file, its SQL as it is sent, the statement sent last.

    `start` is the offset of `statement` in `text`; a file in a transaction is sent as a whole.
    """

    file: SqlFile | None = None
    text: str = ""
    statement: str = ""
    start: int = 0


class Watched:
    """A connection as pgdbm uses it. `timeout` is how many seconds one migration may take, None for any time.

    Afterwards `spot` is where it came to, `failure` what went wrong, and `recorder` has what was sent.
    """

    def __init__(self, connection: asyncpg.Connection, *, recorder: Recorder, timeout: float | None = None) -> None:
        self.connection = connection
        self.recorder = recorder
        self.spot = Spot()
        self.failure: BaseException | None = None
        self.timeout = timeout
        self._coming: list[tuple[SqlFile, str]] = []
        self._after: AfterFile | None = None

    def expect(self, files: Sequence[SqlFile], render: Callable[[str], str], after: AfterFile | None) -> None:
        """Says which migrations will come, in their order, as what text, and what is done after each."""
        self._coming = [(file, render(file.text)) for file in files]
        self._after = after

    @property
    def complete(self) -> bool:
        """Whether all migrations came that were expected."""
        return not self._coming

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's, with an eye on it."""
        whole = self._begins(query)
        part = not whole and self._goes_on(query)
        try:
            if whole:
                await self._leave_out()
            status = cast(str, await self.connection.execute(query, *args, timeout=timeout or self.timeout))
            if whole or part:
                self.recorder.migration(query)
            else:
                self.recorder.statement(query, args)
            if whole and self._after is not None and self.spot.file is not None:
                await self._after(self.spot.file)
        except (*FAILURES, BuildError) as error:
            # pgdbm 0.4 keeps only its text, and tries to release its lock after it.
            self.failure = self.failure or error
            raise
        return status

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """As asyncpg's; what pgdbm reads need not be read again."""
        if not query.lstrip().upper().startswith("SELECT "):
            self.recorder.give_up()
        return cast("list[asyncpg.Record]", await self.connection.fetch(query, *args))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """As asyncpg's."""
        async with self.connection.transaction():
            self.recorder.begin()
            yield
            await self._leave_out()
            self.recorder.commit()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the connection's, and not known here."""
        self.recorder.give_up()
        return getattr(self.connection, name)

    async def _leave_out(self) -> None:
        """Has it left out of the recording that pgdbm makes its table before each migration, where it is there."""
        if self.recorder.makes and await self.connection.fetchval(_NOTHING_WRITTEN):
            self.recorder.nothing_made()

    def _begins(self, query: str) -> bool:
        """Whether this is the next migration as a whole."""
        if not self._coming or self._coming[0][1] != query or runs_without_transaction(query):
            return False
        file, text = self._coming.pop(0)
        self.spot = Spot(file, text, text)
        return True

    def _goes_on(self, query: str) -> bool:
        """Whether this is a single statement of a migration without transaction; what it is not is pgdbm's own."""
        if self._coming and runs_without_transaction(self._coming[0][1]) and query in self._coming[0][1]:
            file, text = self._coming.pop(0)
            self.spot = Spot(file, text)
        if runs_without_transaction(self.spot.text):
            start = self.spot.text.find(query, self.spot.start + len(self.spot.statement))
            if start >= 0:
                self.spot.statement, self.spot.start = query, start
                return True
        return False


def runs_without_transaction(text: str) -> bool:
    """Whether pgdbm sends the statements of this migration one by one."""
    return _NO_TRANSACTION.search(text) is not None


class Builder(AsyncDatabaseManager):
    """A manager on one connection; `names` has the set's schema for each service that its SQL speaks of."""

    def __init__(self, watched: Watched, *, schema: str, names: Mapping[str, str]) -> None:
        super().__init__(pool=cast(Any, watched), schema=schema)
        self.watched = watched
        self.names = names

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """The one connection."""
        yield self.watched

    def under(self, schemas: Sequence[str]) -> Builder:
        """The same with other schemas, in the order of the set's names."""
        names = dict(zip(self.names, schemas, strict=True))
        (mine,) = (service for service, schema in self.names.items() if schema == self.schema)
        return Builder(self.watched, schema=names[mine], names=names)

    def prepare_query(self, query: str) -> str:
        """Templates filled in; an extension is there already, so that its creation is made conditional."""
        return super().prepare_query(with_existing_extensions(with_schemas(query, self.names)))
