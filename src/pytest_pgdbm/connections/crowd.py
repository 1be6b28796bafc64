"""Waiting for connections that others have: for how long, and what is said about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.connections.budget import (
    FEWEST_OF_A_WORKER,
    fewest_with_databases,
    fitting,
    needed,
    raised,
    room,
)
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import NoConnection
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import PREFIX, quote_ident

SECONDS_TO_TELL = 5.0
"""How long a wait lasts before it is told."""

SECONDS_TO_WAIT = 30.0
"""How long to wait for a connection while nobody gives one back."""

SECONDS_TO_WAIT_AGAIN = 1.0
"""The same once it was in vain."""

SECONDS_FOR_A_TURN = 300.0
"""How long to wait for another worker, whose test may take its time."""

_PAUSE = 0.05
_MOST_NAMED = 8

# The application's name is shown to everybody; what kind of process it is, only to who may see more:
# https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
_HOLDERS = """
select coalesce(nullif(application_name, ''), '(no name)') as application, coalesce(usename, '?') as role,
    coalesce(datname, '?') as database, count(*) as number
from pg_catalog.pg_stat_activity
where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
group by 1, 2, 3 order by 4 desc, 1
"""


class Held(NamedTuple):
    """Connections that somebody has: what they call themselves, whose they are, to which database; `ours` the run's."""

    application: str
    role: str
    database: str
    number: int
    ours: bool

    def __str__(self) -> str:
        """As it is told."""
        return f"{self.number} x {self.application!r} ({self.role} in {self.database})"


Ask = Callable[[], Awaitable[Sequence[Held]]]


class ServerFull(NoConnection, asyncpg.TooManyConnectionsError):  # type: ignore[misc]  # asyncpg has no types
    """As both: for who knows the plugin's errors, and for who knows the server's."""


def no_room_for_databases(endpoint: Endpoint) -> NoConnection:
    """Why isolation `database` is refused where a worker's share is too small for it, and what mends that."""
    each, workers = fewest_with_databases(endpoint), endpoint.workers
    usable = endpoint.max_connections - endpoint.reserved_connections
    return NoConnection(
        f"isolation 'database' needs {each} connections of each worker, and {endpoint.host}:{endpoint.port} has"
        f" {usable} for {_workers(workers)}\n"
        f"  {room(endpoint)}\n"
        f"  to mend it: {raised(endpoint, needed(endpoint, workers, each))} or more, or fewer workers:"
        f" -n {fitting(endpoint, each)} " + ("fits" if usable >= each else "would still be too many")
    )


async def holders(connection: asyncpg.Connection, run: str) -> list[Held]:
    """Who has the server's connections, those with the most first, as this `run` sees it."""
    ours = f"{PREFIX} {run} "
    rows = await connection.fetch(_HOLDERS)
    return [Held(**row, ours=row["application"].startswith(ours)) for row in rows]


async def nobody() -> Sequence[Held]:
    """Stands for `holders` where nobody can be asked."""
    return ()


class Crowd:
    """A server that lets in only so many. `ask` tells who has its connections; `say` is given each wait once."""

    def __init__(self, endpoint: Endpoint, *, ask: Ask = nobody, say: Callable[[str], object] = str) -> None:
        self._endpoint = endpoint
        self._ask = ask
        self.say = say
        self.patience = SECONDS_TO_WAIT

    def wait(self, seconds: float | None = None) -> Wait:
        """A wait that begins now and lasts for so many seconds at most."""
        return Wait(self, self.patience if seconds is None else seconds)

    async def text(self, why: str, waited: float) -> str:
        """What is said of a wait: the server's room, what the run needs of it, who has it, what mends it."""
        if not self._endpoint.version:  # the first login is to find out
            return f"{masked(why)} (for {waited:.0f} seconds)"
        at, endpoint, held = f"{self._endpoint.host}:{self._endpoint.port}", self._endpoint, await self._holders()
        return (
            f"waited {waited:.0f} seconds for a connection to {at}: {masked(why)}\n"
            f"  {room(endpoint)}\n"
            f"  needed: {FEWEST_OF_A_WORKER * endpoint.workers} for {_workers(endpoint.workers)},"
            " each one to build and two for a test\n"
            f"  held: {_named(held) or 'who holds them could not be asked'}\n"
            f"  to mend it: {_remedies(endpoint, _of_others(endpoint, held))}"
        )

    async def _holders(self) -> Sequence[Held]:
        try:
            return await asyncio.wait_for(self._ask(), 2)
        except FAILURES:
            return ()


def _named(held: Sequence[Held]) -> str:
    rest = sum(each.number for each in held[_MOST_NAMED:])
    return ", ".join([*map(str, held[:_MOST_NAMED]), *([f"{rest} of others"] if rest else [])])


def _of_others(endpoint: Endpoint, held: Sequence[Held]) -> int:
    """How many of the connections that are let in the run cannot have, since others have them."""
    kind, _, name = endpoint.limited.partition(" ")
    whose = {"ROLE": lambda each: each.role, "DATABASE": lambda each: each.database}.get(kind)
    counted = [each for each in held if whose is None or quote_ident(whose(each)) == name]
    return sum(each.number for each in counted if not each.ours)


def _remedies(endpoint: Endpoint, others: int) -> str:
    # As many as there are were too few.
    enough = max(needed(endpoint, endpoint.workers) + others, endpoint.max_connections + FEWEST_OF_A_WORKER)
    ways = [f"{raised(endpoint, enough)} or more", "fewer other clients"]
    fits = (endpoint.max_connections - endpoint.reserved_connections - others) // FEWEST_OF_A_WORKER
    if 0 < fits < endpoint.workers:
        ways.append(f"fewer workers: -n {fits} fits")
    *before, last = ways
    return f"{', '.join(before)}, or {last}"


class Wait:
    """One wait. Who waits calls `pause` in a loop, `go_on` when something has moved, `over` at its good end."""

    def __init__(self, crowd: Crowd, seconds: float) -> None:
        self._crowd = crowd
        self._seconds = seconds
        self._began = self._moved = time.monotonic()
        self._told = False

    async def pause(self, why: str, until: asyncio.Event | None = None) -> None:
        """A twentieth of a second, or less if `until` is set before. Raises NoConnection when the time is up."""
        now = time.monotonic()
        if now - self._moved > self._seconds:
            self._crowd.patience = SECONDS_TO_WAIT_AGAIN
            raise ServerFull(await self._crowd.text(why, now - self._began))
        if now - self._began > SECONDS_TO_TELL and not self._told:
            self._told = True
            self._crowd.say(await self._crowd.text(why, now - self._began))
        await _either(until)

    def go_on(self) -> None:
        """Says that the wait makes progress: its time begins anew."""
        self._moved = time.monotonic()

    def over(self) -> None:
        """Says that it was not in vain."""
        self._crowd.patience = SECONDS_TO_WAIT


def _workers(number: int) -> str:
    return f"{number} worker" + "s" * (number != 1)


async def _either(until: asyncio.Event | None) -> None:
    if until is None:
        await asyncio.sleep(_PAUSE)
    elif not until.is_set():
        waiting = asyncio.ensure_future(until.wait())
        await asyncio.wait([waiting], timeout=_PAUSE)
        waiting.cancel()
