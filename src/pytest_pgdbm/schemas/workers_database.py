"""The database in which a process makes its schemas; on a server of the plugin's own, one for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from pytest_pgdbm.connections import cluster, login
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.keeper import waiting
from pytest_pgdbm.schemas.kept import outside
from pytest_pgdbm.schemas.kept.keeping import Keeping
from pytest_pgdbm.schemas.kept.record import Record

# Whoever is in there still could change something once it was looked at.
_END_OTHERS = """
select pg_terminate_backend(pid, 5000) from pg_catalog.pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""

AdminOf = Callable[[str], Admin]


class WorkersDatabase:
    """A process's database, and the connection that builds and drops in it.

    `keeping` is what waits in it, and for the next run; None where the server ends with the run, or is not ours.
    """

    def __init__(self, endpoint: Endpoint, run: Run, name: str, admin: Admin, keeping: Keeping | None = None) -> None:
        """Made by `get_database`."""
        self._endpoint = endpoint
        self._run = run
        self.name = name
        self.admin = admin
        self.keeping = keeping

    async def end(self) -> None:
        """Closes the connection. On a server that outlives the run, leaves the database to the next one, or drops it.

        To be called when the tests' connections are closed. The next run drops what cannot be dropped now.
        """
        with contextlib.suppress(*FAILURES):
            await self._leave()
        await self.admin.close()
        if self.keeping is not None and not self.keeping.left:
            with contextlib.suppress(*FAILURES):
                await _drop(self._endpoint, self._run, self.name)

    async def _leave(self) -> None:
        if self.keeping is not None and self.keeping.entries:
            async with self.admin.administrator() as connection:
                await connection.execute(_END_OTHERS)
                await self.keeping.leave(connection)


async def get_database(endpoint: Endpoint, run: Run, admin_of: AdminOf) -> WorkersDatabase:
    """This worker's own database on a server of our own; the endpoint's database over a URL.

    On a kept server it is one that an earlier run has left there, if it is as it was then. Raises BuildError.
    """
    if not endpoint.own:
        return WorkersDatabase(endpoint, run, endpoint.database, admin_of(endpoint.database))
    if endpoint.kept_in is None:
        name = await _make(endpoint, run)
        return WorkersDatabase(endpoint, run, name, admin_of(name))
    folder = Path(endpoint.kept_in)
    return await _taken(endpoint, run, admin_of, folder) or await _new(endpoint, run, admin_of, folder)


async def _taken(endpoint: Endpoint, run: Run, admin_of: AdminOf, folder: Path) -> WorkersDatabase | None:
    for name, data in waiting.take(folder):
        record = Record.read(data, endpoint.version)
        admin = admin_of(name)
        if record is not None and await _is_sound(admin, record):
            return WorkersDatabase(endpoint, run, name, admin, Keeping(folder, name, endpoint.version, record))
        await admin.close()
        with contextlib.suppress(*FAILURES):
            await _drop(endpoint, run, name)
    return None


async def _is_sound(admin: Admin, record: Record) -> bool:
    """Whether a database is outside of its sets what it was when it was left."""
    inside = [oid for entry in record.entries for oid in entry.inside]
    try:
        async with admin.administrator() as connection:
            return await record.outside.still(connection, inside)
    except FAILURES:
        return False


async def _new(endpoint: Endpoint, run: Run, admin_of: AdminOf, folder: Path) -> WorkersDatabase:
    name = await _make(endpoint, run)
    admin = admin_of(name)
    async with admin.administrator() as connection:
        record = Record(frozenset(), await outside.take(connection), [])
    return WorkersDatabase(endpoint, run, name, admin, Keeping(folder, name, endpoint.version, record))


async def _make(endpoint: Endpoint, run: Run) -> str:
    database = names.database_name(run=run.id, worker=run.worker)
    async with _set_up(endpoint, run) as connection:
        try:
            await connection.execute(creation(database, endpoint))
        except asyncpg.PostgresError as error:
            raise BuildError(f"database {database!r} could not be made: {error}") from error
    return database


async def _drop(endpoint: Endpoint, run: Run, database: str) -> None:
    async with _set_up(endpoint, run) as connection:
        await cluster.drop_database(connection, database)


@asynccontextmanager
async def _set_up(endpoint: Endpoint, run: Run) -> AsyncIterator[asyncpg.Connection]:
    application = names.application_name(run=run.id, worker=run.worker, part="set-up")
    connection = await login.connect(endpoint, endpoint.database, endpoint.admin, application_name=application)
    try:
        yield connection
    finally:
        await connection.close()


def creation(database: str, endpoint: Endpoint) -> str:
    """The statement that makes a database on a server of our own."""
    text = f"create database {quote_ident(database)} owner {quote_ident(endpoint.login.user)}"
    if endpoint.kind == "embedded":
        text += " template template0"  # which no earlier run can have changed
    if int(endpoint.version.partition(".")[0]) >= 15:
        # Copying the files takes a quarter of the time of logging all pages; the checkpoints that it needs cost nothing
        # where nothing waits for disks. https://www.postgresql.org/docs/current/sql-createdatabase.html
        text += " strategy file_copy"
    return text
