"""Extensions that services need, made before the first migration.

They go to `public`, belong to the whole database and stay: other schemas may use them. One that exists already
stays where it is. At a URL one that was made here says so at the end of its comment, after its own description.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.proof import origin

_KNOWN = """
select a.name, e.oid is not null as made, v.schema as fixed_schema
from pg_catalog.pg_available_extensions a
left join pg_catalog.pg_extension e on e.extname = a.name
left join pg_catalog.pg_available_extension_versions v
    on v.name = a.name and v.version = a.default_version
where a.name = any($1)
"""
# Those that this transaction has made, what the wanted one needs among them.
_NEW = """
select extname as name, pg_catalog.obj_description(oid, 'pg_extension') as description from pg_catalog.pg_extension
where xmin = pg_catalog.pg_current_xact_id()::xid
"""
_MADE = """
select extname as name, extversion as version, pg_catalog.obj_description(oid, 'pg_extension') as comment
from pg_catalog.pg_extension order by extname
"""
_MARK = "made by pytest-pgdbm, "
_MARKED = re.compile(rf"(?:.*; )?{_MARK}(?P<origin>run [0-9a-f]{{10}}, process \d+ on \S+)", re.DOTALL)


class Made(NamedTuple):
    """An extension that a run has made: `origin` says which, as `run 0123456789, process 4711 on ada`."""

    name: str
    version: str
    origin: str


async def find_made(connection: asyncpg.Connection) -> list[Made]:
    """The extensions of this database that runs have made."""
    found = [(row, _MARKED.fullmatch(row["comment"] or "")) for row in await connection.fetch(_MADE)]
    return [Made(row["name"], row["version"], match["origin"]) for row, match in found if match is not None]


async def make(connection: asyncpg.Connection, wanted: Collection[str], endpoint: Endpoint, run: str) -> None:
    """Makes those of these extensions that are not there, for this run.

    Raises BuildError if the server does not have one, or the role may not make it.
    """
    known = {row["name"]: row for row in await connection.fetch(_KNOWN, list(wanted))}
    for name in sorted(wanted):
        if name not in known:
            raise BuildError(_missing(name, endpoint))
        if not known[name]["made"]:
            where = "" if known[name]["fixed_schema"] is not None else " SCHEMA public"
            await _make(connection, name, where, "" if endpoint.own else f"{_MARK}{origin(run)}")


async def _make(connection: asyncpg.Connection, name: str, where: str, mark: str) -> None:
    try:
        async with connection.transaction():
            # Two workers that make one extension at the same time would meet in its unique index.
            await connection.execute("select pg_advisory_xact_lock(hashtext('pytest-pgdbm extension'))")
            await connection.execute(f"create extension if not exists {quote_ident(name)}{where} cascade")
            if mark:
                await _mark(connection, mark)
    except asyncpg.InsufficientPrivilegeError as error:
        raise BuildError(
            f"extension {name!r} is needed, and this role may not make it ({error.args[0]})\n"
            f"  to mend it: have a superuser run CREATE EXTENSION {quote_ident(name)}{where} in this database"
        ) from error
    except asyncpg.PostgresError as error:
        raise BuildError(f"extension {name!r} is needed, and could not be made\n  the server says: {error}") from error


async def _mark(connection: asyncpg.Connection, mark: str) -> None:
    """Notes on the new extensions who made them; where the role may not, they stay without."""
    for row in await connection.fetch(_NEW):
        comment = f"{row['description']}; {mark}" if row["description"] else mark
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.execute(f"comment on extension {quote_ident(row['name'])} is {quote_literal(comment)}")


def _missing(name: str, endpoint: Endpoint) -> str:
    looked = f"on the server ({endpoint.kind}, PostgreSQL {endpoint.version}"
    looked += f", {Path(endpoint.sharedir) / 'extension'})" if endpoint.sharedir else ")"
    if endpoint.kind == "url":
        way = f"install the extension on that server (its packages are often called postgresql-contrib or …-{name})"
    else:
        way = (
            "use a PostgreSQL that has it: a system package with contrib (taken if pgdbm_extensions names the"
            " extension, or by --pgdbm-server-bin=/usr/lib/postgresql/<version>/bin), an image (--pgdbm-server="
            "container --pgdbm-image=…), or a server of yours (--pgdbm-url)"
        )
    return f"extension {name!r} is not available: looked for it {looked}\n  to mend it: {way}"
