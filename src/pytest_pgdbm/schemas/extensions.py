"""Extensions that services need, made before the first migration.

They go to `public`, belong to the whole database and stay: other schemas may use them. One that exists already
stays where it is.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import asyncpg

from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident

_KNOWN = """
select a.name, e.oid is not null as made, v.schema as fixed_schema
from pg_catalog.pg_available_extensions a
left join pg_catalog.pg_extension e on e.extname = a.name
left join pg_catalog.pg_available_extension_versions v
    on v.name = a.name and v.version = a.default_version
where a.name = any($1)
"""


async def make(connection: asyncpg.Connection, wanted: Collection[str], endpoint: Endpoint) -> None:
    """Makes those of these extensions that are not there.

    Raises BuildError if the server does not have one, or the role may not make it.
    """
    known = {row["name"]: row for row in await connection.fetch(_KNOWN, list(wanted))}
    for name in sorted(wanted):
        if name not in known:
            raise BuildError(_missing(name, endpoint))
        if not known[name]["made"]:
            await _make(connection, name, fixed_schema=known[name]["fixed_schema"] is not None)


async def _make(connection: asyncpg.Connection, name: str, *, fixed_schema: bool) -> None:
    where = "" if fixed_schema else " SCHEMA public"
    try:
        async with connection.transaction():
            # Two workers that make one extension at the same time would meet in its unique index.
            await connection.execute("select pg_advisory_xact_lock(hashtext('pytest-pgdbm extension'))")
            await connection.execute(f"create extension if not exists {quote_ident(name)}{where} cascade")
    except asyncpg.InsufficientPrivilegeError as error:
        raise BuildError(
            f"extension {name!r} is needed, and this role may not make it ({error.args[0]})\n"
            f"  to mend it: have a superuser run CREATE EXTENSION {quote_ident(name)}{where} in this database"
        ) from error
    except asyncpg.PostgresError as error:
        raise BuildError(f"extension {name!r} is needed, and could not be made\n  the server says: {error}") from error


def _missing(name: str, endpoint: Endpoint) -> str:
    looked = f"on the server ({endpoint.kind}, PostgreSQL {endpoint.version}"
    looked += f", {Path(endpoint.sharedir) / 'extension'})" if endpoint.sharedir else ")"
    if endpoint.kind == "url":
        way = f"install the extension on that server (its packages are often called postgresql-contrib or …-{name})"
    else:
        way = (
            "use a PostgreSQL that has it: a system package with contrib (it is found by itself, or by"
            " --pgdbm-server-bin=/usr/lib/postgresql/<version>/bin), an image (--pgdbm-server=container"
            " --pgdbm-image=…), or a server of yours (--pgdbm-url)"
        )
    return f"extension {name!r} is not available: looked for it {looked}\n  to mend it: {way}"
