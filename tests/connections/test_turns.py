"""The tickets by which workers take turns, after a migration has released all locks of the session that holds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.crowd import Crowd
from pytest_pgdbm.connections.registration import Registration
from pytest_pgdbm.connections.seats import Seats
from pytest_pgdbm.connections.turns import Turns
from pytest_pgdbm.ground.locks import TICKETS
from pytest_pgdbm.ground.names import new_run

HELD = f"""
select array_agg(l.objid::int order by l.objid) from pg_locks l
where l.locktype = 'advisory' and l.classid = {TICKETS}
    and l.database = (select oid from pg_database where datname = current_database())
"""


async def here(work: Coroutine[Any, Any, None]) -> None:
    await work


@asynccontextmanager
async def having_a_turn(workshop: Workshop) -> AsyncIterator[tuple[Admin, Seats]]:
    """A worker that has both tickets that there are."""
    endpoint = await workshop.by_url(workshop.url)
    registration = Registration(new_run(), "gw0")
    admin = Admin(endpoint, workshop.database, application_name="it", path=None, registration=registration)
    turns = Turns(admin, Crowd(endpoint), 2, here)
    seats = Seats(Crowd(endpoint), 0, turns)
    try:
        async with turns.kept(seats):
            yield admin, seats
    finally:
        await turns.close()
        await admin.close()


@pytest.mark.parametrize("ticket", [None, 1, 2])
def test_a_turn_goes_on_unless_somebody_else_has_it_by_then(workshop: Workshop, ticket: int | None) -> None:
    async def go() -> None:
        async with having_a_turn(workshop) as (admin, seats), connected(workshop.url) as other:
            assert (seats.number, await other.fetchval(HELD)) == (2, [1, 2])
            async with admin.tester() as connection:
                await migrate(connection, other)
            assert (seats.number, await other.fetchval(HELD)) == ((2, [1, 2]) if ticket is None else (0, [ticket]))

    async def migrate(connection: asyncpg.Connection, other: asyncpg.Connection) -> None:
        await connection.execute("select pg_advisory_unlock_all()")
        if ticket is not None:
            assert await other.fetchval("select pg_try_advisory_lock($1, $2)", TICKETS, ticket)

    asyncio.run(go())
