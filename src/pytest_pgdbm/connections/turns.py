"""Where a server has no room for a pool of each worker: they take turns.

Only the server coordinates workers on several machines. So the connections to share are tickets there: advisory locks,
taken in pairs over the connection that each worker has anyhow. A worker that has its turn keeps it from test to test
until another one waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.budget import FEWEST_IN_POOL
from pytest_pgdbm.connections.crowd import SECONDS_FOR_A_TURN, Crowd
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.seats import Seats
from pytest_pgdbm.ground.locks import TICKETS

SECONDS_OF_A_TURN = 0.25
"""How long a turn lasts at least: logging in anew costs something, too."""

SECONDS_TO_STAND_BACK = 0.15
"""How long a worker that has given way leaves it to the others to be first."""

_LOOK = 0.05

_TAKE = f"""
select ticket from pg_catalog.unnest($1::int[]) ticket where pg_catalog.pg_try_advisory_lock({TICKETS}, ticket) limit $2
"""
# The second number of a ticket is its own, from 1 on.
_GIVE = f"select pg_catalog.pg_advisory_unlock({TICKETS}, ticket) from pg_catalog.unnest($1::int[]) ticket"
_WAIT = f"select pg_catalog.pg_try_advisory_lock_shared({TICKETS}, 0)"
_WAIT_NO_MORE = f"select pg_catalog.pg_advisory_unlock_shared({TICKETS}, 0)"
_SOMEBODY_WAITS = f"""
select exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.classid = {TICKETS} and l.objid = 0 and l.objsubid = 2
        and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
        and l.pid <> pg_catalog.pg_backend_pid()
)
"""

Run = Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]


class Turns:
    """A worker's part in it. `number` is how many tickets there are; `run` does work in the private loop for others."""

    def __init__(self, admin: Admin, crowd: Crowd, number: int, run: Run) -> None:
        self._admin = admin
        self._crowd = crowd
        self._number = number
        self._run = run
        self._turn = asyncio.Lock()
        self._held: list[int] = []
        self._since = 0.0
        self._stood_back = True
        self._keeping = 0
        self._watching: asyncio.Task[None] | None = None
        self._seats: Seats | None = None
        admin.on_loss.append(self._lose)
        admin.on_release.append(self._take_again)

    async def take(self, seats: Seats, known: int) -> None:
        """Waits until there are more seats than the `known`; in any loop. Raises NoConnection."""
        await self._run(self._take(seats, known))

    @asynccontextmanager
    async def kept(self, seats: Seats) -> AsyncIterator[None]:
        """It is this worker's turn, and stays so meanwhile; in the private loop. Raises NoConnection."""
        self._keeping += 1
        try:
            if seats.number < FEWEST_IN_POOL:
                await self._take(seats, seats.number)
            yield
        finally:
            self._keeping -= 1

    async def close(self) -> None:
        """Ends it; what is held goes with the connection."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _take(self, seats: Seats, known: int) -> None:
        async with self._turn:
            if seats.number > known:
                return
            if not self._stood_back:
                self._stood_back = True
                await asyncio.sleep(SECONDS_TO_STAND_BACK)
            tickets = await self._tickets()
            self._held = [*self._held, *tickets]
            self._seats = seats
            self._since = time.monotonic()
            with seats.lock:
                seats.number = len(self._held)
            if self._watching is None or self._watching.done():
                self._watching = asyncio.ensure_future(self._watch(seats))

    def _lose(self) -> None:
        """The tickets went with the connection; who needs a seat takes others."""
        self._held = []
        if self._seats is not None:
            with self._seats.lock:
                self._seats.number = 0

    async def _take_again(self, connection: asyncpg.Connection) -> None:
        """Takes the same tickets, or none if somebody else has one by now."""
        tickets = [row["ticket"] for row in await connection.fetch(_TAKE, self._held, len(self._held))]
        if len(tickets) < len(self._held):
            await connection.execute(_GIVE, tickets)
            self._lose()

    async def _tickets(self) -> list[int]:
        wait = self._crowd.wait(SECONDS_FOR_A_TURN)
        waits = False
        try:
            while True:
                async with self._admin.administrator() as connection:
                    if (tickets := await self._try(connection)) is not None:
                        wait.over()
                        return tickets
                    waits = waits or bool(await connection.fetchval(_WAIT))
                await wait.pause("the workers take turns, and others have theirs")
        finally:
            if waits:
                await self._wait_no_more()

    async def _try(self, connection: asyncpg.Connection) -> list[int] | None:
        """Two tickets, or none."""
        others = [ticket for ticket in range(1, self._number + 1) if ticket not in self._held]
        random.shuffle(others)
        tickets = [row["ticket"] for row in await connection.fetch(_TAKE, others, FEWEST_IN_POOL)]
        if len(tickets) == FEWEST_IN_POOL:
            return tickets
        if tickets:
            await connection.execute(_GIVE, tickets)
        return None

    async def _wait_no_more(self) -> None:
        with contextlib.suppress(*FAILURES):
            async with self._admin.administrator() as connection:
                await connection.execute(_WAIT_NO_MORE)

    async def _watch(self, seats: Seats) -> None:
        """Gives the turn back between two tests once somebody waits for it."""
        while self._held:
            await asyncio.sleep(_LOOK)
            if not self._keeping and time.monotonic() - self._since > SECONDS_OF_A_TURN:
                with contextlib.suppress(*FAILURES):
                    await self._give_back(seats)

    async def _give_back(self, seats: Seats) -> None:
        async with self._admin.administrator() as connection:
            if await connection.fetchval(_SOMEBODY_WAITS) and not self._keeping and seats.vacate():
                tickets, self._held = self._held, []
                self._stood_back = False
                await connection.execute(_GIVE, tickets)
