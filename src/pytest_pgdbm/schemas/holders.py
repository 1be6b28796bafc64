"""Who still holds a lock on a schema that is to go, and how that ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import PREFIX

# A table that is not committed yet cannot be seen, but making it locks the schema. A transaction that was prepared has
# locks and no process: https://www.postgresql.org/docs/current/view-pg-locks.html
_HOLDERS = """
with held as (
    select l.pid, l.virtualtransaction,
        bool_or(n.nspname = any($1)) as here,
        bool_or(n.nspname <> all($1) and n.nspname !~ '^(pg_|pgdbm_|information_schema$)') as elsewhere
    from pg_catalog.pg_locks l
    left join pg_catalog.pg_class c on c.oid = l.relation
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        or l.locktype = 'object' and (
            l.classid = 'pg_catalog.pg_namespace'::regclass and n.oid = l.objid
            or n.nspname = (pg_catalog.pg_identify_object(l.classid, l.objid, 0)).schema
        )
    where l.granted and l.pid is distinct from pg_backend_pid()
        and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
    group by 1, 2
)
select coalesce(h.pid, 0) as pid, coalesce(a.application_name, '') as application,
    coalesce(a.usename, '') as role,
    case when h.pid is null then 'prepared transaction' else coalesce(a.state, '') end as state,
    coalesce(a.query, '') as query,
    coalesce(
        a.backend_type = 'client backend' and pg_catalog.pg_has_role(session_user, a.usesysid, 'member')
            and (a.application_name = $2 or not h.elsewhere),
        false
    ) as left_behind
from held h left join pg_catalog.pg_stat_activity a on a.pid = h.pid
where h.here
order by 1
"""


class Holder(NamedTuple):
    """A connection that held a lock: its server process, what it calls itself, its role, state and last query.

    `left_behind` tells one that a test left behind from somebody else's. One test's statements are over when its
    schemas are given back, so what holds locks on them alone was left behind; what holds others too, as a backup of
    the whole database does, is not the test's. Without `locks` it is one that was only open, in a database that was
    the test's alone, or one that was `writing` something, nobody knows where, and was left alone.
    """

    pid: int
    application: str
    role: str
    state: str
    query: str
    left_behind: bool
    locks: bool = True
    writing: bool = False

    def __str__(self) -> str:
        """Who it is, in a message."""
        if not self.pid:
            return "a prepared transaction"
        return f"server process {self.pid} ({self.application!r} of role {self.role!r}, {self.state})"


async def find_holders(connection: asyncpg.Connection, schemas: Sequence[str], pool_application: str) -> list[Holder]:
    """Those who hold a lock on a relation of these schemas. The run's pool calls itself `pool_application`."""
    rows = await connection.fetch(_HOLDERS, list(schemas), pool_application)
    return [Holder(**row) for row in rows]


def is_writing(since: str) -> str:
    """SQL: whether the session `a` of `pg_stat_activity` has written in a transaction that is open and older.

    `since` is an SQL expression of seconds before the statement came. Most changes of types, functions and rights leave
    no lock that tells of what. The plugin's own connections are not meant: what is out of a pool is
    known, and builds take their time.
    """
    return (
        "a.datname = pg_catalog.current_database() and a.backend_xid is not null"
        f" and a.xact_start < pg_catalog.statement_timestamp() - pg_catalog.make_interval(secs => {since})"
        f" and a.backend_type = 'client backend' and a.application_name not like '{PREFIX} %'"
    )


async def find_writing(connection: asyncpg.Connection, since: float) -> list[Holder]:
    """Those who have been in a transaction for more than so many seconds and have written in it."""
    rows = await connection.fetch(
        "select a.pid, a.application_name as application, a.usename as role, a.state, a.query"
        f" from pg_catalog.pg_stat_activity a where {is_writing('$1')} order by a.pid",
        since,
    )
    return [Holder(**row, left_behind=False, locks=False, writing=True) for row in rows]


async def find_oldest_reader(connection: asyncpg.Connection) -> Holder | None:
    """Who sees the oldest rows of this database, which therefore stay; None if it is nobody that can be seen."""
    row = await connection.fetchrow(
        "select a.pid, a.application_name as application, coalesce(a.usename, '') as role,"
        " coalesce(a.state, a.backend_type) as state, coalesce(a.query, '') as query"
        " from pg_catalog.pg_stat_activity a"
        " where a.datname = pg_catalog.current_database() and a.pid <> pg_catalog.pg_backend_pid()"
        " and coalesce(a.backend_xmin, a.backend_xid) is not null"
        " order by pg_catalog.age(coalesce(a.backend_xmin, a.backend_xid)) desc limit 1"
    )
    return None if row is None else Holder(**row, left_behind=False, locks=False)


async def end_left_behind(connection: asyncpg.Connection, holders: Sequence[Holder]) -> list[Holder]:
    """Ends the connections that tests left behind; returns which those were."""
    ended = [holder for holder in holders if holder.left_behind]
    if ended:
        pids = [holder.pid for holder in ended]
        # Waits, bounded, until each is gone (PostgreSQL 14): https://www.postgresql.org/docs/current/functions-admin.html
        await connection.execute("select pg_terminate_backend(pid, 5000) from unnest($1::int[]) pid", pids)
    return ended
