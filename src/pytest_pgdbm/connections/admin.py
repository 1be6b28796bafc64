"""The one connection of this process that builds and drops, in the private loop.

It also holds the locks that show others that the process lives. So whatever is done over it is done while they are
held; once it is lost, what was made before is no longer this process's to touch. Between two pieces of work it is lent
as a line to the thread in which the tests run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg

from pytest_pgdbm.connections import login, whereabouts
from pytest_pgdbm.connections.contact import Contact
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.line import Line
from pytest_pgdbm.connections.registration import Registration
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.names import quote_ident, quote_literal

T = TypeVar("T")

SECONDS_TO_CLOSE = 2.0

_POLL = 0.0005

_AS_LOGGED_IN = "reset session authorization; reset role; reset all"

# Not DISCARD ALL: it takes asyncpg's prepared statements too.
_CLEAN = f"{_AS_LOGGED_IN}; close all; unlisten *; discard temp; discard sequences"

# Set once for many resets: each change of the replication role throws away all plans of the session. As a replica,
# nothing of the user's fires: https://www.postgresql.org/docs/current/runtime-config-client.html. Rows that policies
# hide are an error rather than overlooked. Each look sees what was committed by then.
_RESETTING = """
set default_transaction_isolation = 'read committed'; set jit = off; set synchronous_commit = off;
set row_security = off; set client_min_messages = warning;
set lock_timeout = '2s'; set statement_timeout = '60s'
"""
_AS_REPLICA = "set session_replication_role = replica"


# The server may not know yet that the network took a session away, whose locks it holds.
_END_LOST = """
select pg_catalog.pg_terminate_backend(pid, 5000) from pg_catalog.pg_stat_activity
where pid = {pid} and application_name = {name} and usename = current_user
"""


class Admin:
    """Lends its connection to one piece of work at a time; opened at the first use, and anew if it was lost.

    With a `registration` it shows that the process lives. `died` tells how the server ended, if that is known, `say` is
    told of a long wait for a server that is full.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        database: str,
        *,
        application_name: str,
        path: str | None,
        registration: Registration | None = None,
        died: Callable[[], str | None] = lambda: None,
        say: Callable[[str], object] = str,
    ) -> None:
        self._endpoint = endpoint
        self._database = database
        self._application_name = application_name
        self._settings = {} if path is None else {"search_path": path}
        self._say = say
        self._connection: asyncpg.Connection | None = None
        self._registration = registration
        self._pid = 0
        self._turn = asyncio.Lock()
        self._contact = Contact(self._log_in, f"{endpoint.host}:{endpoint.port}", died)
        self._resetting = False
        self._interrupted = False
        self._line: Line | None = None
        self._line_turn = threading.Lock()
        self._line_is_free = False
        self._is_for_reset = False
        self.session = 0
        """Another number once what was temporary in the session is gone."""
        self.losses = 0
        """How often the connection has ended by itself: what was made before that is not to be touched."""
        self.on_loss: list[Callable[[], object]] = []
        """What is called in the private loop when the connection has ended by itself, before there is another."""
        self.on_release: list[Callable[[asyncpg.Connection], Awaitable[None]]] = []
        """What is called in the private loop when a migration has released all locks of the session."""

    @asynccontextmanager
    async def resetter(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection as the role that administers, set up to put rows back without anything of the user's firing.

        That needs a superuser; for any other role its triggers and foreign keys work as ever. Set up so, the connection
        is lent as a line afterwards.
        """
        async with self._at_work():
            self._is_for_reset = True
            try:
                connection = await self._set_up()
                with _closed_if_broken(connection):
                    yield connection
                self._lend(connection)
            finally:
                self._is_for_reset = False

    def with_line(self, use: Callable[[Line | None], T]) -> T:
        """What `use` returns of the session as a line, set up as by `resetter`; None while it is not lent.

        For any thread, briefly. After an interruption (Ctrl-C, a time-out that raises) nobody knows whose the next
        answer is: the line is given up.
        """
        # Not a context manager of our own: interrupted on its way in or out it would keep the turn for good.
        with self._line_turn:
            line = self._line if self._line_is_free else None
            try:
                return use(line)
            except BaseException:
                if line is not None:
                    line.broken = True
                raise

    def give_up_line(self) -> None:
        """Has the next work find the line broken, if there is one: the connection is lost then. From any thread."""
        with self._line_turn:
            if self._line is not None:
                self._line.broken = True

    @property
    def is_lent_soon(self) -> bool:
        """Whether the session is lent as a line now, or will be after the work that is done on it."""
        line = self._line
        return line is not None and not line.broken and (self._line_is_free or self._is_for_reset)

    @property
    def is_given_up(self) -> bool:
        """Whether the connection is lost with the next work."""
        line = self._line
        return line is not None and line.broken

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection, as the role that administers: a superuser on servers of our own."""
        async with self._at_work():
            connection = await self._plain()
            with _closed_if_broken(connection):
                yield connection

    @asynccontextmanager
    async def tester(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection, as the role of tests and migrations, whose session state is cleaned afterwards."""
        async with self._at_work():
            connection = await self._plain()
            if self._endpoint.login != self._endpoint.admin:
                role = quote_ident(self._endpoint.login.user)
                await connection.execute(f"set session authorization {role}")
            try:
                yield connection
            except BaseException:
                await _finished(self._clean(connection, failed=True))
                raise
            await _finished(self._clean(connection, failed=False))

    @asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        async with self._turn:
            with self._contact.watching(lambda: self._connection):
                try:
                    await self._take_back()
                    yield
                except BaseException:
                    self._interrupted = True
                    raise

    def _lend(self, connection: asyncpg.Connection) -> None:
        if not self.is_open or connection.is_in_transaction():
            return
        self._line = self._line or Line.of(connection)
        if self._line is not None:
            self._line.lend(self._hung_up)
            self._line_is_free = True

    async def _take_back(self) -> None:
        """Has the line's session for the work that begins; waits for what was asked over the line."""
        self._keep_line()
        line = self._line
        if line is None or not (line.lent or line.broken):
            return
        while (line.is_busy or line.broken) and self.is_open:
            if line.broken:
                self._hung_up()
            else:
                line.listen()
                await asyncio.sleep(_POLL if line.is_busy else 0)
        if self.is_open:
            line.take_back()

    def _keep_line(self) -> None:
        with self._line_turn:
            self._line_is_free = False

    def _hung_up(self) -> None:
        """Says that the other end of the line has gone: asyncpg does not read, and would not know."""
        self._keep_line()
        if self._connection is not None:
            self._connection.terminate()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None and not self._connection.is_closed()

    async def close(self) -> None:
        """Closes the connection, in two seconds at most; nothing happens the second time."""
        with contextlib.suppress(*FAILURES):
            await asyncio.wait_for(self._take_back(), SECONDS_TO_CLOSE)
        connection, self._connection = self._connection, None
        self._close_line()
        if connection is not None and not connection.is_closed():
            with contextlib.suppress(*FAILURES):  # a server that hangs does not close it
                await connection.close(timeout=SECONDS_TO_CLOSE)

    def let_go(self) -> None:
        """In a forked child: the connection is the parent's alone, and ends with it."""
        # The socket, which asyncpg does not give away; without it the locks would be held while the child lives.
        transport = getattr(self._connection, "_transport", None)
        with contextlib.suppress(AttributeError, OSError, ValueError):
            nowhere, held = os.open(os.devnull, os.O_RDWR), transport.get_extra_info("socket").fileno()  # type: ignore[union-attr]
            os.dup2(nowhere, held, inheritable=False)
            os.close(nowhere)
        if self._line is not None:
            self._line.let_go()

    def _close_line(self) -> None:
        self._keep_line()
        line, self._line = self._line, None
        if line is not None:
            line.close()

    async def _set_up(self) -> asyncpg.Connection:
        connection = await self._opened()
        if not self._resetting:
            superuser = connection.get_settings().is_superuser == "on"
            await connection.execute(f"{_RESETTING}; {_AS_REPLICA}" if superuser else _RESETTING)
            self._resetting = True
        return connection

    async def _plain(self) -> asyncpg.Connection:
        connection = await self._opened()
        if self._resetting:
            await connection.execute("reset all")
            self._resetting = False
        return connection

    async def _opened(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        elif self._interrupted:
            await _roll_back(self._connection)
            # Whether what was cancelled came about is not known: a change of the role or of the settings, say.
            await self._connection.execute(_AS_LOGGED_IN)
            self._resetting = False
        self._interrupted = False
        return self._connection

    async def _connect(self) -> asyncpg.Connection:
        connection = await self._contact.connect()
        try:
            if self._database == self._endpoint.database:  # the others are the plugin's, by names that no other has
                await whereabouts.look_again(connection, self._endpoint)
            if self._registration is not None:
                if self._pid:
                    await self._end_lost(connection)
                await self._registration.enter(connection)
        except BaseException:
            connection.terminate()
            raise
        self._pid = connection.get_server_pid()
        self._resetting = False
        self.session += 1
        connection.add_termination_listener(self._ended)
        return connection

    async def _end_lost(self, connection: asyncpg.Connection) -> None:
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            await connection.execute(_END_LOST.format(pid=self._pid, name=quote_literal(self._application_name)))

    async def _log_in(self) -> asyncpg.Connection:
        return await login.connect(
            self._endpoint,
            self._database,
            self._endpoint.admin,
            application_name=self._application_name,
            settings=self._settings,
            say=self._say,
        )

    def _ended(self, connection: asyncpg.Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._close_line()
            self.losses += 1
            for lose in self.on_loss:
                lose()

    async def _clean(self, connection: asyncpg.Connection, *, failed: bool) -> None:
        """Takes away what a migration may have left in the session; a connection that does not let it goes itself."""
        self.session += 1
        try:
            if failed or connection.is_in_transaction():
                await _roll_back(connection)
            await connection.execute(_CLEAN)
            await self._release_locks(connection)
        except BaseException as error:
            connection.terminate()
            if not isinstance(error, FAILURES):
                raise

    async def _release_locks(self, connection: asyncpg.Connection) -> None:
        if self._registration is None:
            await connection.execute("select pg_catalog.pg_advisory_unlock_all()")
        elif await self._registration.clean(connection):
            for take_again in self.on_release:
                await take_again(connection)


async def _roll_back(connection: asyncpg.Connection) -> None:
    """Ends what was cancelled: asyncpg may not know yet that it began, or not know that it never did."""
    connection._top_xact = None  # left by a BEGIN that was cancelled: the next transaction would be a savepoint in it
    await connection.execute("rollback")


async def _finished(work: Coroutine[Any, Any, None]) -> None:
    """Awaits work to its end, even if that is interrupted: without it the connection, and so its locks, had to go."""
    task = asyncio.ensure_future(work)
    interruption = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            interruption = error
    task.result()
    if interruption is not None:
        raise interruption


@contextmanager
def _closed_if_broken(connection: asyncpg.Connection) -> Iterator[None]:
    """Lets go of a session that the server has ended, though asyncpg does not say so yet."""
    try:
        yield
    except asyncpg.InternalClientError:
        connection.terminate()
        raise
