"""Makes databases for sets, and is the only place where a database is dropped.

One goes only with proof that this run made it: its name, and a comment on it. A comment on a database lies in a catalog
that all databases share, so it is read from outside: https://www.postgresql.org/docs/current/functions-info.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.ground.records import Endpoint
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.watched import FAILURES

# The columns have changed their names from version to version: datlocprovider came with 15, daticulocale became
# datlocale with 17. https://www.postgresql.org/docs/current/catalog-pg-database.html
_LOCALES = """
select pg_catalog.pg_encoding_to_char(d.encoding) as encoding, d.datcollate as collate, d.datctype as ctype,
    coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') as provider,
    coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale') as locale
from pg_catalog.pg_database d where d.datname in (pg_catalog.current_database(), 'template1')
"""

_NOT_MADE = "a database of its own could not be made for a test (isolation 'database')"

_COMMENT = """
select pg_catalog.shobj_description(d.oid, 'pg_database') as comment from pg_catalog.pg_database d where d.datname = $1
"""


class Databases:
    """The databases of a process's sets, made and dropped over a connection to another database of the server."""

    def __init__(self, admin: Admin, endpoint: Endpoint, proof: Proof) -> None:
        self._admin = admin
        self._endpoint = endpoint
        self._proof = proof

    async def create(self, database: str, services: Iterable[str]) -> None:
        """Makes a database, owned by whom tests run as, with the mark on it. Raises BuildError.

        Whoever is interrupted while this goes on must drop it: it is made nevertheless.
        """
        making = asyncio.ensure_future(self._create(database, self._proof.database_comment(services)))
        making.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Between the two statements it has no mark yet, and could not be dropped.
        await asyncio.shield(making)

    async def drop(self, database: str) -> list[Kept]:
        """Drops a database, whoever is connected to it; returns it, with the reason, if it has to stay."""
        try:
            async with self._admin.administrator() as connection:
                return await self._drop(connection, database)
        except FAILURES as error:
            return [Kept(database, f"the server refused to drop it: {masked(str(error))}", "database")]

    async def close(self) -> None:
        """Closes the connection."""
        await self._admin.close()

    async def _create(self, database: str, comment: str) -> None:
        try:
            async with self._admin.administrator() as connection:
                await self._make(connection, database)
                await connection.execute(f"comment on database {quote_ident(database)} is {quote_literal(comment)}")
        except FAILURES as error:
            raise BuildError(f"{_NOT_MADE}\n  the server says: {masked(str(error))}") from error

    async def _make(self, connection: asyncpg.Connection, database: str) -> None:
        template = await _template(connection, self._endpoint)
        try:
            await connection.execute(_creation(database, self._endpoint, template))
        except asyncpg.InsufficientPrivilegeError as error:
            role = quote_ident(await connection.fetchval("select current_user"))
            raise BuildError(
                f"{_NOT_MADE}\n  role {role} may not create databases at {self._endpoint.host}:{self._endpoint.port}\n"
                f"  to mend it: have a superuser run ALTER ROLE {role} CREATEDB;"
                " or leave the URL out, for a server of the run's own"
            ) from error

    async def _drop(self, connection: asyncpg.Connection, database: str) -> list[Kept]:
        found = await connection.fetchrow(_COMMENT, database)
        if found is None:
            return []
        if not self._proof.holds_for_database(database, found["comment"]):
            return [Kept(database, "no proof that this run made it", "database")]
        # https://www.postgresql.org/docs/current/sql-dropdatabase.html
        await connection.execute(f"drop database {quote_ident(database)} with (force)")
        return []


def _creation(database: str, endpoint: Endpoint, template: str = "") -> str:
    """The statement that makes a database as the server's administrator would: a copy of `template1`.

    `template` is SQL that says otherwise.
    """
    # Copying the files takes a quarter of the time of logging every page. The checkpoints that it needs cost nothing
    # where nothing waits for disks; on a server that others use they would.
    # https://www.postgresql.org/docs/current/sql-createdatabase.html
    files = endpoint.own and int(endpoint.version.partition(".")[0]) >= 15
    strategy = " strategy file_copy" if files else ""
    # At a URL that is who is logged in, whom the URL need not name.
    owner = f" owner {quote_ident(endpoint.login.user)}" if endpoint.own else ""
    return f"create database {quote_ident(database)}{owner}{template}{strategy}"


async def _template(connection: asyncpg.Connection, endpoint: Endpoint) -> str:
    """What to copy: what is in `template1` would be in production's database too.

    Where the database at the URL sorts and compares in another way, that counts for more, and only `template0` can be
    made so.
    """
    if endpoint.own:
        return ""
    locales = {tuple(row.values()) for row in await connection.fetch(_LOCALES)}
    if len(locales) == 1:
        return ""
    (here,) = await connection.fetch(_LOCALES.replace(", 'template1'", ""))
    return _from_template0(here)


def _from_template0(here: asyncpg.Record) -> str:
    text = (
        f" template template0 encoding {quote_literal(here['encoding'])}"
        f" lc_collate {quote_literal(here['collate'])} lc_ctype {quote_literal(here['ctype'])}"
    )
    if here["provider"] == "i":
        text += f" locale_provider icu icu_locale {quote_literal(here['locale'])}"
    elif here["provider"] == "b":
        text += f" locale_provider builtin builtin_locale {quote_literal(here['locale'])}"
    return text
