"""Whether the server still answers: looked at while work takes long, waited for once, and remembered if it does not.

A server that hangs answers nothing and ends no connection, so that work on it would wait for ever. A server that is
gone would cost each of many tests the time that it takes to find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import asyncpg

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.quiet import quietly
from pytest_pgdbm.ground.masks import masked

SECONDS_TO_LOOK = 10.0
"""How long a piece of work takes until it is looked whether the server still answers, and between two looks."""

SECONDS_TO_COME_BACK = 5.0
"""How long a server that refuses connections is waited for, once: it may be about to come back."""

SECONDS_AT_REST = 10.0
"""How long a server is not asked again that did not answer in time: until then tests fail at once."""

SECONDS_ANEW = 1.0
"""How long it is waited for then."""

_POLL = 0.05
_STARTING = (asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError)
_SILENT = (asyncio.TimeoutError, OSError)

Open = Callable[[], Awaitable[asyncpg.Connection]]


class Contact:
    """Opens connections to one server; to be used in the private loop.

    `place` is what the server is called, `died` tells how it ended, where that is known.
    """

    def __init__(self, open_connection: Open, place: str, died: Callable[[], str | None]) -> None:
        self._open = open_connection
        self._place = place
        self._died = died
        self._silence = ""
        self._again = 0.0

    async def connect(self) -> asyncpg.Connection:
        """A connection, of a server that comes back too.

        Raises ConnectionError for a server that does not answer, at once if it did not a moment ago; asyncpg's errors
        for one that says no.
        """
        loop = asyncio.get_running_loop()
        if self._silence and loop.time() < self._again:
            raise ConnectionError(self._silence)
        until = loop.time() + (0 if self._silence else SECONDS_TO_COME_BACK)
        while True:
            try:
                connection = await self._opened()
            except (*_STARTING, *_SILENT) as error:
                if isinstance(error, asyncio.TimeoutError):
                    self._again = loop.time() + SECONDS_AT_REST
                elif loop.time() < until and self._died() is None:
                    await asyncio.sleep(_POLL)
                    continue
                self._silence = self._told(error)
                raise ConnectionError(self._silence) from error
            self._silence = ""
            return connection

    @contextmanager
    def watching(self, current: Callable[[], asyncpg.Connection | None]) -> Iterator[None]:
        """Work inside that waits for a server which does not answer any more fails: the connection is cut off."""
        watches: list[asyncio.Task[None]] = []
        # Work is rarely long: a timer costs a fraction of a task.
        timer = asyncio.get_running_loop().call_later(
            SECONDS_TO_LOOK, lambda: watches.append(asyncio.ensure_future(self._watch(current)))
        )
        try:
            yield
        finally:
            timer.cancel()
            for watch in watches:
                watch.cancel()

    async def _watch(self, current: Callable[[], asyncpg.Connection | None]) -> None:
        while True:
            connection = current()
            if connection is not None and not await self._answers():
                connection.terminate()
            await asyncio.sleep(SECONDS_TO_LOOK)

    async def _answers(self) -> bool:
        try:
            with quietly():
                (await self._opened()).terminate()
        except _SILENT as error:
            self._silence = self._told(error)
            self._again = asyncio.get_running_loop().time() + SECONDS_AT_REST
            return False
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            pass  # a refusal is an answer
        return True

    async def _opened(self) -> asyncpg.Connection:
        return await asyncio.wait_for(self._open(), SECONDS_ANEW if self._silence else login.SECONDS_TO_CONNECT)

    def _told(self, error: Exception) -> str:
        why = self._died() or masked(str(error)) or f"no answer within {login.SECONDS_TO_CONNECT:g} seconds"
        return f"the server at {self._place} does not answer any more: {why}"
