"""Whether tests may run in the database that a URL leads to; asked before the first write, of the live connection.

What a variable says is no proof: a tunnel, a copied setting or the default of a library leads elsewhere than it reads,
and a real database over a local socket is the classic victim. So the host never decides.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import asyncpg

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.schemas.proof import made_by_a_run
from pytest_pgdbm.settings import Setting

WORDS = ("test", "tests", "testing", "ci", "pytest")
SHOWN = 5
"""So many schemas are named at most."""

# What is an extension's, or a part of something else (a row type, the sequence of an identity column), is not counted
# itself: https://www.postgresql.org/docs/current/catalog-pg-depend.html. A table always is: a partitioned one is an
# internal dependent of its own columns.
_FOREIGN = """
with objects (classid, objid, kind, home) as (
    select 'pg_catalog.pg_class'::pg_catalog.regclass, oid, case relkind
            when 'v' then 'view' when 'm' then 'view' when 'f' then 'foreign table' when 'S' then 'sequence'
            else 'table' end, relnamespace
        from pg_catalog.pg_class where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all select 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, 'function', pronamespace from pg_catalog.pg_proc
    union all select 'pg_catalog.pg_type'::pg_catalog.regclass, oid, 'type', typnamespace from pg_catalog.pg_type
    union all select 'pg_catalog.pg_foreign_server'::pg_catalog.regclass, oid, 'foreign server', null
        from pg_catalog.pg_foreign_server
    union all select 'pg_catalog.pg_largeobject'::pg_catalog.regclass, oid, 'large object', null
        from pg_catalog.pg_largeobject_metadata
)
select n.nspname::text as schema, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment, o.kind,
    pg_catalog.count(*) as number
from objects o left join pg_catalog.pg_namespace n on n.oid = o.home
where (n.nspname is null or n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = o.classid and d.objid = o.objid
            and (d.deptype = 'e' or d.deptype = 'i' and o.kind in ('sequence', 'function', 'type'))
    )
group by n.nspname, n.oid, o.kind
order by o.kind
"""

_SIZES = """
select n.nspname::text as schema, pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))::bigint as bytes,
    pg_catalog.pg_size_pretty(pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))) as shown
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm', 'S') and n.nspname !~ '^pg_' group by n.nspname
"""
# To measure a table takes a lock on it, for which this is no place to wait.
_BOUNDED = "set local lock_timeout = '1s'; set local statement_timeout = '5s'"

_ADDRESS = "select pg_catalog.host(pg_catalog.inet_server_addr()) as host, pg_catalog.inet_server_port() as port"


@dataclass
class _Foreign:
    """What somebody else has put into a schema, or, with `schema` None, into the database itself."""

    schema: str | None
    numbers: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    size: str = ""

    def __str__(self) -> str:
        where = "in no schema" if self.schema is None else f"schema {plain(quote_ident(self.schema))}"
        counted = ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in self.numbers.items())
        return f"{where}: {counted}" + (f" ({self.size})" if self.size else "")


def named_for_tests(database: str) -> bool:
    """Whether the name has one of `WORDS` in it, between `_`, `-` and digits, in any case: `app_test2`, `CI-shop`.

    `contest` and `latest` have none, and neither has `AppTest`.
    """
    return not set(re.split(r"[-_0-9]+", database.lower())).isdisjoint(WORDS)


async def check(connection: asyncpg.Connection, database: str, place: str, allow: Setting[str | None]) -> None:
    """Returns if tests may run in `database`, the one that the connection is to, and writes nothing.

    They may if its name says so, if it holds nothing but what the server, its extensions and runs of the plugin have
    made, or if `allow` is its name. Raises ServerFailed with what was seen; `place` is what the URL calls the server.
    """
    if named_for_tests(database) or allow.value == database:
        return
    foreign = await _find_foreign(connection, database, place)
    if foreign:
        seen = await _measured(connection, foreign)
        where = place + await behind(connection, place)
        raise ServerFailed("\n  ".join(_told(database, where, seen, allow)), _remedy(database))


async def _find_foreign(connection: asyncpg.Connection, database: str, place: str) -> list[_Foreign]:
    try:
        rows = await connection.fetch(_FOREIGN)
    except asyncpg.PostgresError as error:
        why = f"what database {plain(quote_ident(database))} at {place} holds could not be seen: {masked(str(error))}"
        raise ServerFailed(f"{why}; nothing was written to it", _remedy(database)) from error
    found: dict[str | None, _Foreign] = {}
    for row in rows:
        schema = row["schema"]
        if schema is None or not made_by_a_run(schema, row["comment"]):
            found.setdefault(schema, _Foreign(schema)).numbers[row["kind"]] += row["number"]
    return list(found.values())


async def _measured(connection: asyncpg.Connection, foreign: list[_Foreign]) -> list[_Foreign]:
    """With sizes, the biggest first; without, where they are not to be had in time."""
    sizes = await _sizes(connection)
    for one in foreign:
        one.bytes, one.size = sizes.get(one.schema, (0, ""))
    return sorted(foreign, key=lambda one: (-one.bytes, -one.numbers.total(), one.schema or ""))


async def _sizes(connection: asyncpg.Connection) -> Mapping[str | None, tuple[int, str]]:
    try:
        async with connection.transaction(readonly=True):
            await connection.execute(_BOUNDED)
            return {row["schema"]: (row["bytes"], row["shown"]) for row in await connection.fetch(_SIZES)}
    except asyncpg.PostgresError:
        return {}


async def behind(connection: asyncpg.Connection, place: str) -> str:
    """What the server says of itself, where that is another address: behind a tunnel, a proxy or a name."""
    row = await connection.fetchrow(_ADDRESS)
    if row is None or row["host"] is None:
        return ""
    host = f"[{row['host']}]" if ":" in row["host"] else row["host"]
    itself = f"{host}:{row['port']}"
    return "" if itself == place else f" (which is {itself})"


def _told(database: str, where: str, foreign: list[_Foreign], allow: Setting[str | None]) -> Iterator[str]:
    yield f"database {plain(quote_ident(database))} at {where} does not look like one for tests; nothing was written"
    yield f"its name has none of the words {', '.join(WORDS)}"
    yield "it holds what the plugin did not make:"
    yield from (f"  {one}" for one in foreign[:SHOWN])
    if len(foreign) > SHOWN:
        more = len(foreign) - SHOWN
        yield f"  … and {more} more schema{'' if more == 1 else 's'}"
    if allow.value is not None:
        yield f"url-allow={plain(masked(allow.value))} (from {allow.source}) allows another database"


def _remedy(database: str) -> str:
    name = plain(shlex.quote(database))
    return (
        "give the URL of an empty database, or of one whose name has such a word, as shop_test; if tests may"
        f" have schemas in this one, say so: --pgdbm-url-allow={name} (or PGDBM_URL_ALLOW, pgdbm_url_allow)"
    )


def plain(name: str) -> str:
    """The name without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
