"""The connections to a database that is one set's alone: when its test is over, so are all that it opened there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from pytest_pgdbm.ground.names import PREFIX, quote_literal
from pytest_pgdbm.schemas.holders import Holder

SECONDS_TO_LEAVE = 0.2
"""How long connections that do nothing may stay: a client that closed one does not wait until the server is done."""

_PAUSE = 0.005

# Who may not end a process does not see what kind it is.
_THERE = """
select a.pid, a.application_name as application, coalesce(a.usename, '') as role, coalesce(a.state, '') as state,
    coalesce(a.query, '') as query
from pg_catalog.pg_stat_activity a
where a.datname = pg_catalog.current_database() and a.pid <> pg_catalog.pg_backend_pid()
    and a.backend_type = 'client backend' and pg_catalog.pg_has_role(session_user, a.usesysid, 'member')
order by a.state_change desc
"""

_ANYBODY = """
(
    select pg_catalog.count(*) filter (where v.application = {pool}) > {idle}
        or pg_catalog.bool_or(v.application <> {pool} and not pg_catalog.starts_with(v.application, {ours})) is true
    from ({there}) v
)
"""

# Waits, bounded, until each is gone: https://www.postgresql.org/docs/current/functions-admin.html (PostgreSQL 14).
_END = "select pg_catalog.pg_terminate_backend(pid, 5000) from pg_catalog.unnest($1::int[]) pid"


def anybody(run: str, pool: str, *, idle: int) -> str:
    """The SQL condition that `end` would have something to do in this database."""
    ours = quote_literal(_prefix(run))
    return _ANYBODY.format(pool=quote_literal(pool), ours=ours, idle=idle, there=_THERE)


async def end(connection: asyncpg.Connection, run: str, pool: str, *, idle: int, pooled: bool = False) -> list[Holder]:
    """Ends the connections that a test has left in this database; returns who they were.

    The plugin's own stay, told by what they call themselves: the run's name, or `pool` for those of the pool, of which
    the `idle` that were used last are kept for the next test. Where the tests go through a pooler (`pooled`) names are
    lost, and sessions that do nothing are the pooler's to keep: they end too, since who knows what they remember, but
    are nobody's leak.
    """
    ours = (_prefix(run), pool)
    foreign, own = await _look(connection, ours)
    deadline = asyncio.get_running_loop().time() + SECONDS_TO_LEAVE
    while foreign and not pooled and all(each.state == "idle" for each in foreign):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(_PAUSE)
        foreign, own = await _look(connection, ours)
    surplus = [each for each in own if each.application == pool][idle:]
    if going := [each.pid for each in (*foreign, *surplus)]:
        await connection.execute(_END, going)
    return [each for each in foreign if not (pooled and each.state == "idle")]


async def _look(connection: asyncpg.Connection, ours: tuple[str, str]) -> tuple[Sequence[Holder], Sequence[Holder]]:
    """Those of the test, and the plugin's own."""
    rows = await connection.fetch(_THERE)
    every = [Holder(**row, left_behind=True, locks=False) for row in rows]
    own = [each for each in every if _is_own(each, ours)]
    return [each for each in every if each not in own], own


def _prefix(run: str) -> str:
    return f"{PREFIX} {run} "


def _is_own(each: Holder, ours: tuple[str, str]) -> bool:
    prefix, pool = ours
    return each.application == pool or each.application.startswith(prefix)
