"""What a run would meet at a URL: the server, what the role may do there, settings, connections, leftovers."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg

from pytest_pgdbm.connections.budget import Budget, fewest_with_databases, fitting, needed, raised
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.login import first_login
from pytest_pgdbm.doctor import advice, left
from pytest_pgdbm.doctor.lines import Row, labelled, section
from pytest_pgdbm.doctor.visit import APPLICATION, visiting
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.servers.choosing import given
from pytest_pgdbm.settings import Settings

_TITLE = "The server at the URL"
_WORKERS = (1, 4, 8)

_RIGHTS = """
select current_user as role, current_database() as database, rolsuper as superuser, rolsuper or rolcreatedb as may_make,
    pg_catalog.has_database_privilege(current_database(), 'CREATE') as may_create,
    pg_catalog.pg_has_role(current_user, 'pg_signal_backend', 'USAGE') as may_end
from pg_catalog.pg_roles where rolname = current_user
"""


async def lines(settings: Settings) -> tuple[list[str], bool]:
    """What is found there, and whether a run would be let in."""
    endpoint, rows = given(settings), list[Row]()
    try:
        endpoint = await first_login(endpoint, application_name=APPLICATION, allow=settings.url_allow)
    except ServerFailed as error:
        rows = labelled("refused", [*error.why.splitlines(), f"to mend it: {error.remedy}"])
    try:
        async with visiting(endpoint) as connection:
            found = await _rows(connection, endpoint)
            leftovers = await left.rows(connection)
    except FAILURES as error:
        return section(_TITLE, rows or [("failed", masked(str(error)))]), False
    return [*section(_TITLE, [*rows, *found]), "", *section(left.TITLE, leftovers)], not rows


async def _rows(connection: asyncpg.Connection, endpoint: Endpoint) -> list[Row]:
    facts = await advice.facts(connection)
    return [
        ("at", f"{endpoint.host}:{endpoint.port}, database {facts.database}, PostgreSQL {facts.version}"),
        *labelled("role", await _rights(connection)),
        *labelled("settings", advice.settings(facts)),
        *labelled("connections", [*advice.connections(facts), *_budget(endpoint)]),
    ]


async def _rights(connection: asyncpg.Connection) -> Iterator[str]:
    row = await connection.fetchrow(_RIGHTS)
    assert row is not None
    return _told_rights(row)


def _told_rights(row: asyncpg.Record) -> Iterator[str]:
    role, database = quote_ident(row["role"]), quote_ident(row["database"])
    yield f"{row['role']}, {'a superuser' if row['superuser'] else 'no superuser'}"
    if row["may_create"]:
        yield "may create schemas here"
    else:
        yield f"may not create schemas here: GRANT CREATE ON DATABASE {database} TO {role}"
    if row["may_make"]:
        yield "may create databases"
    else:
        yield f"may not create databases, which isolation 'database' needs: ALTER ROLE {role} CREATEDB"
    if row["may_end"]:
        yield "may end the sessions of other roles"
    else:
        yield "may end its own sessions only, which is enough"


def _budget(endpoint: Endpoint) -> Iterator[str]:
    """What each worker has, by the number of workers; nothing if the server was not reached as a run does."""
    for workers in _WORKERS if endpoint.version else ():
        budget = Budget.of(endpoint, workers)
        if budget.tickets:
            yield (
                f"-n {workers} lets workers take turns: -n {fitting(endpoint)} would not,"
                f" or {raised(endpoint, needed(endpoint, workers))}"
            )
        else:
            yield f"-n {workers} gives each worker a pool of up to {budget.pool}, {_databases(endpoint, budget)}"


def _databases(endpoint: Endpoint, budget: Budget) -> str:
    if budget.databases:
        return f"and with isolation 'database' up to {budget.databases} databases"
    return f"and has no room for isolation 'database': -n {fitting(endpoint, fewest_with_databases(endpoint))} would"
