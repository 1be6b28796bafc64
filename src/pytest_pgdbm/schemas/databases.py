"""Databases that are a set's alone.

One is dropped only with proof that this run made it: its name, a mark that it is made with, and a comment on it. All of
them lie in a catalog that the databases share, so they are read from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import asyncpg

from pytest_pgdbm.connections import cluster
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.proof import Proof, database_mark
from pytest_pgdbm.schemas.workers_database import creation

# First that of the database at the URL, and then that of template1, unless it is the same. The columns have changed
# their names: datlocprovider came with 15, daticulocale became datlocale with 17.
# https://www.postgresql.org/docs/current/catalog-pg-database.html
_LOCALES = """
with locales as (
    select d.datname, pg_catalog.pg_encoding_to_char(d.encoding) as encoding, d.datcollate as sorting,
        d.datctype as ctype, coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', '') as provider,
        coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', '') as locale
    from pg_catalog.pg_database d
)
select encoding, sorting, ctype, provider, locale
from locales where datname in (pg_catalog.current_database(), 'template1')
group by 1, 2, 3, 4, 5 order by bool_or(datname = pg_catalog.current_database()) desc
"""

_NOT_MADE = "a database of its own could not be made for a test (isolation 'database')"

_HOME = "(select oid from pg_catalog.pg_database where datname = current_database())"
_COMMENT = f"""
select pg_catalog.shobj_description(d.oid, 'pg_database') as comment, d.datconnlimit as mark, {_HOME} as home
from pg_catalog.pg_database d where d.datname = $1
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
        making = asyncio.ensure_future(self._create(database, services))
        making.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Between the two statements it has no comment yet.
        await asyncio.shield(making)

    async def drop(self, database: str) -> list[Kept]:
        """Drops a database, whoever is connected to it; returns it, with the reason, if it has to stay.

        If the connection is lost by then, it is for somebody else to sweep.
        """
        losses = self._admin.losses
        try:
            async with self._admin.administrator() as connection:
                return await self._drop(connection, database) if self._admin.losses == losses else []
        except FAILURES as error:
            return [Kept(database, f"the server refused to drop it: {masked(str(error))}", "database")]

    async def _create(self, database: str, services: Iterable[str]) -> None:
        try:
            async with self._admin.administrator() as connection:
                home = await connection.fetchval(f"select {_HOME}")
                await self._make(connection, database, database_mark(home))
                comment = self._proof.database_comment(services, home)
                await connection.execute(f"comment on database {quote_ident(database)} is {quote_literal(comment)}")
        except FAILURES as error:
            raise BuildError(f"{_NOT_MADE}\n  the server says: {masked(str(error))}") from error

    async def _make(self, connection: asyncpg.Connection, database: str, mark: int) -> None:
        try:
            await connection.execute(f"{await _creation(connection, database, self._endpoint)} connection limit {mark}")
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
        if not self._proof.holds_for_database(database, found["comment"], found["mark"], found["home"]):
            return [Kept(database, "no proof that this run made it", "database")]
        await cluster.drop_database(connection, database)
        return []


async def _creation(connection: asyncpg.Connection, database: str, endpoint: Endpoint) -> str:
    """The statement that makes the database.

    At a URL it is a copy of `template1`, as production's was: what an administrator has put there is in it. Where the
    database at the URL sorts and compares in another way, that counts for more, and only `template0` can be made so.
    https://www.postgresql.org/docs/current/sql-createdatabase.html
    """
    if endpoint.own:
        return creation(database, endpoint)
    here, *others = await connection.fetch(_LOCALES)
    owner = "" if endpoint.login == endpoint.admin else f" owner {quote_ident(endpoint.login.user)}"
    return f"create database {quote_ident(database)}{owner}" + ("" if not others else _as_here(here))


def _as_here(here: asyncpg.Record) -> str:
    text = (
        f" template template0 encoding {quote_literal(here['encoding'])}"
        f" lc_collate {quote_literal(here['sorting'])} lc_ctype {quote_literal(here['ctype'])}"
    )
    if here["provider"] == "c":
        text += " locale_provider libc"
    elif here["provider"] == "i":
        text += f" locale_provider icu icu_locale {quote_literal(here['locale'])}"
    elif here["provider"] == "b":
        text += f" locale_provider builtin builtin_locale {quote_literal(here['locale'])}"
    return text
