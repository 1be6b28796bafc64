"""The settings of a server that concern tests: their values, and what the user could do about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import quote_ident, quote_literal

_FEW_BUFFERS = 128 << 20

# https://www.postgresql.org/docs/current/view-pg-settings.html
_SETTINGS = "select name, pg_catalog.current_setting(name) as value from pg_catalog.pg_settings where name = any($1)"
_TIMEOUTS = (
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)
_NAMES = (
    "server_version",
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "fsync",
    "synchronous_commit",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "shared_buffers",
    *_TIMEOUTS,
)
_LIMITS = """
select current_user as role, current_database() as database, r.rolsuper as superuser,
    r.rolconnlimit as of_role, d.datconnlimit as of_database,
    pg_catalog.pg_size_bytes(current_setting('shared_buffers')) as buffers,
    (select count(*) from pg_catalog.pg_stat_activity where usename is not null and pid <> pg_backend_pid())
        as used,
    array(select gid::text from pg_catalog.pg_prepared_xacts where database = current_database() order by prepared)
        as prepared
from pg_catalog.pg_roles r, pg_catalog.pg_database d
where r.rolname = session_user and d.datname = current_database()
"""


class Facts(NamedTuple):
    """What a session there sees. Limits of the role and the database are -1 where there are none.

    `used` are the connections of others now; `prepared` the names of transactions that are prepared in this database.
    """

    values: Mapping[str, str]
    role: str
    database: str
    superuser: bool
    of_role: int
    of_database: int
    buffers: int
    used: int
    prepared: tuple[str, ...]

    @property
    def version(self) -> str:
        """As `18.6`."""
        return self.values["server_version"].split()[0]

    def amount(self, name: str) -> int:
        """The value of a setting that is a number; 0 if this version does not have it."""
        return int(self.values.get(name, 0))


async def facts(connection: asyncpg.Connection) -> Facts:
    """Looks at all that the advice is about."""
    values = {row["name"]: row["value"] for row in await connection.fetch(_SETTINGS, _NAMES)}
    row = await connection.fetchrow(_LIMITS)
    assert row is not None
    return Facts(values=values, **{**row, "prepared": tuple(row["prepared"])})


def connections(facts: Facts) -> Iterator[str]:
    """How many connections there are for this role, and what limits them."""
    reserved = facts.amount("superuser_reserved_connections") + facts.amount("reserved_connections")
    yield f"max_connections = {facts.values['max_connections']}, of which {reserved} are kept for others"
    if facts.of_role >= 0 and not facts.superuser:
        yield f"role {facts.role} may have {facts.of_role}: ALTER ROLE {quote_ident(facts.role)} CONNECTION LIMIT -1"
    if facts.of_database >= 0:
        database = quote_ident(facts.database)
        yield f"the database lets in {facts.of_database}: ALTER DATABASE {database} CONNECTION LIMIT -1"
    yield f"{facts.used} in use by others now"


def settings(facts: Facts) -> Iterator[str]:
    """A line for each setting, with what could be done."""
    yield f"fsync = {facts.values['fsync']}{_fsync(facts)}"
    yield f"synchronous_commit = {facts.values['synchronous_commit']}{_commit(facts)}"
    yield f"shared_buffers = {facts.values['shared_buffers']}{_buffers(facts)}"
    yield f"max_locks_per_transaction = {facts.values['max_locks_per_transaction']}{_locks(facts)}"
    yield f"max_prepared_transactions = {facts.values['max_prepared_transactions']}{_prepared(facts)}"
    for name in _TIMEOUTS:
        if facts.values.get(name, "0") != "0":
            yield f"{name} = {facts.values[name]}: not for what the plugin does itself, but for code that sets none"


def _fsync(facts: Facts) -> str:
    off = facts.values["fsync"] == "off"
    return "" if off else ": on a server that holds nothing but tests, ALTER SYSTEM SET fsync = off makes it quicker"


def _commit(facts: Facts) -> str:
    if facts.values["fsync"] == "off" or facts.values["synchronous_commit"] == "off":
        return ""
    database = quote_ident(facts.database)
    return f": ALTER DATABASE {database} SET synchronous_commit = off spares the wait for the disk at each commit"


def _buffers(facts: Facts) -> str:
    return ": 128MB serve tests better (ALTER SYSTEM, restart)" if facts.buffers < _FEW_BUFFERS else ""


def _locks(facts: Facts) -> str:
    # https://www.postgresql.org/docs/current/runtime-config-locks.html
    slots = facts.amount("max_locks_per_transaction") * (
        facts.amount("max_connections") + facts.amount("max_prepared_transactions")
    )
    return f': room for {slots} locks; raise it if a run says "out of shared memory" (ALTER SYSTEM, restart)'


def _prepared(facts: Facts) -> str:
    if facts.prepared:
        first = quote_literal(facts.prepared[0])
        return f", {len(facts.prepared)} in this database, which keep their locks: ROLLBACK PREPARED {first}"
    none = facts.amount("max_prepared_transactions") == 0
    return ": tests of PREPARE TRANSACTION need more (ALTER SYSTEM, restart)" if none else ""
