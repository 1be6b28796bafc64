"""The database in which a process makes its schemas, on a server of the plugin's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pytest_pgdbm.connections import cluster, login
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.ground.records import Run


async def make_database(endpoint: Endpoint, run: Run) -> str:
    """This worker's own database on a server of our own; the endpoint's database over a URL."""
    if not endpoint.own:
        return endpoint.database
    database = names.database_name(run=run.id, worker=run.worker)
    async with _set_up(endpoint, run) as connection:
        try:
            await connection.execute(creation(database, endpoint))
        except asyncpg.PostgresError as error:
            raise BuildError(f"database {database!r} could not be made: {error}") from error
    return database


async def end_database(endpoint: Endpoint, run: Run) -> None:
    """Drops what `make_database` made where the server outlives the run; the next run drops what cannot be now."""
    if endpoint.kept is None:
        return
    with contextlib.suppress(*FAILURES):
        async with _set_up(endpoint, run) as connection:
            await cluster.drop_database(connection, names.database_name(run=run.id, worker=run.worker))


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
