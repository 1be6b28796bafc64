"""The plugin's own session as a line: asked without a loop, lost and given up, and asyncpg's again afterwards."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import asyncpg
import pytest
from databases import connected, waits_or_is_done
from workshop import Workshop

from pytest_pgdbm.connections import admin as admin_module
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.line import Answer, Line, Question

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="without epoll there is no line")

Lend = Callable[[Admin], AbstractAsyncContextManager[asyncpg.Connection]]
SECONDS = 30.0


@asynccontextmanager
async def lending(workshop: Workshop) -> AsyncIterator[Admin]:
    """A connection that is lent as a line."""
    endpoint = await workshop.by_url(workshop.url)
    admin = Admin(endpoint, workshop.database, application_name="it", path=None)
    await pid_of(admin)
    yield admin
    await admin.close()


def line_of(admin: Admin) -> Line | None:
    return admin.with_line(lambda line: line)


def the_line(admin: Admin) -> Line:
    line = line_of(admin)
    assert line is not None
    return line


def ask(admin: Admin, *statements: str) -> list[Answer]:
    """Sends statements; the list has their answers once they are heard."""
    heard: list[Answer] = []
    the_line(admin).ask([(statement, heard.append) for statement in statements])
    return heard


def answers(admin: Admin, *statements: str) -> list[Answer]:
    heard = ask(admin, *statements)
    line = the_line(admin)
    while line.is_busy:
        select.select([line._socket], [line._socket] if line._unsent else [], [], SECONDS)
        line.listen()
    return heard


def told(admin: Admin, statement: str) -> object:
    (answer,) = answers(admin, statement)
    assert answer.error == ""
    return answer.rows[0][0]


async def pid_of(admin: Admin) -> int:
    async with admin.resetter() as connection:
        return connection.get_server_pid()


async def end(workshop: Workshop, pid: int) -> None:
    async with workshop.superuser() as superuser:
        assert await superuser.fetchval("select pg_terminate_backend($1, 5000)", pid)


def lost(admin: Admin) -> asyncio.Event:
    """Is set when the connection is lost."""
    event = asyncio.Event()
    admin.on_loss.append(event.set)
    return event


ROWS = {
    "select": [()],
    "select null": [(None,)],
    "select '', null, 'null', 'é€𝄞', 'a\nb', E'\\t'": [("", None, "null", "é€𝄞", "a\nb", "\t")],
    "select true, 1.5, '{1,2}'::oid[], null::int": [("t", "1.5", "{1,2}", None)],
    "select n, n * n from generate_series(1, 3) n": [("1", "1"), ("2", "4"), ("3", "9")],
    "select where false": [],
    "set jit = off": [],
    "select " + ", ".join(map(str, range(1600))): [tuple(map(str, range(1600)))],
}


@pytest.mark.parametrize("statement", ROWS, ids=lambda statement: statement[:30])
def test_rows_come_as_text(workshop: Workshop, statement: str) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            (answer,) = answers(admin, statement)
            assert (answer.error, list(answer.rows)) == ("", ROWS[statement])

    asyncio.run(go())


def test_several_statements_are_answered_in_order_and_an_error_leaves_the_others(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            said = answers(
                admin,
                "create table one (n int)",
                "insert into one values (1); select 1 / 0",
                "insert into one values (2)",
                "nonsense",
                "vacuum one",
                "select n from one",
            )
            assert [answer.error for answer in said] == [
                "",
                "division by zero",
                "",
                'syntax error at or near "nonsense"',
                "",
                "",
            ]
            assert [list(answer.rows) for answer in said] == [[], [], [], [], [], [("2",)]]

    asyncio.run(go())


def test_rows_before_an_error_are_not_the_next_answers(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            failed, following = answers(admin, "select 1 / (3 - n) from generate_series(1, 9) n", "select 'next'")
            assert failed.error == "division by zero"
            assert (following.error, list(following.rows)) == ("", [("next",)])

    asyncio.run(go())


def test_what_is_larger_than_any_buffer_goes_both_ways(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            large = "x" * 5_000_000
            sent, back, after = answers(admin, f"select length('{large}')", f"select '{large}'", "select 'after'")
            assert list(sent.rows) == [(str(len(large)),)]
            assert list(back.rows) == [(large,)]
            assert list(after.rows) == [("after",)]

    asyncio.run(go())


def test_what_was_sent_in_part_is_sent_to_its_end_for_who_comes_next(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin, connected(workshop.url) as other:
            await other.execute("select pg_advisory_lock(4711)")  # who waits for it does not read
            large = "x" * 20_000_000
            heard = ask(admin, "select pg_advisory_xact_lock(4711)", f"select length('{large}')")
            assert the_line(admin)._unsent
            await other.execute("select pg_advisory_unlock(4711)")
            async with admin.administrator() as connection:
                assert [list(answer.rows) for answer in heard] == [[("",)], [(str(len(large)),)]]
                assert await connection.fetchval("select 'mine'") == "mine"

    asyncio.run(go())


def test_notices_are_no_answers(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            warns = "do $$ begin for n in 1..9 loop raise warning '%', n; end loop; end $$"
            said = answers(admin, warns, "select 1", f"{warns}; select 2", "set application_name = 'other'; select 3")
            assert [answer.error for answer in said] == [""] * 4
            assert [list(answer.rows) for answer in said] == [[], [("1",)], [("2",)], [("3",)]]

    asyncio.run(go())


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "idle"])
def test_a_session_that_is_ended_is_known_at_once_and_another_follows(workshop: Workshop, asked: bool) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            event = lost(admin)
            heard = ask(admin, "select pg_sleep(60)") if asked else []
            pid = admin._pid
            await end(workshop, pid)
            await asyncio.wait_for(event.wait(), SECONDS)
            assert (admin.losses, admin.is_open, heard) == (1, False, [])
            assert line_of(admin) is None
            assert await pid_of(admin) != pid
            assert told(admin, "select 'anew'") == "anew"
            assert (admin.losses, heard) == (1, [])

    asyncio.run(go())


def test_work_that_comes_before_the_end_of_the_session_is_known_gets_another(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            heard = ask(admin, "select pg_terminate_backend(pg_backend_pid())", "select 'never'")
            line = the_line(admin)
            select.select([line._hangup], [], [], SECONDS)  # while the loop is not asked
            line.listen()
            pid = admin._pid
            assert await pid_of(admin) != pid
            assert (admin.losses, [answer.rows for answer in heard if answer.rows]) == (1, [])
            assert told(admin, "select 'anew'") == "anew"

    asyncio.run(go())


async def works_as_ever(connection: asyncpg.Connection, workshop: Workshop) -> None:
    await connection.execute("create temp table copied (n int)")
    await connection.copy_records_to_table("copied", records=[(1,), (2,)])
    async with connection.transaction():
        assert await connection.fetchval("select sum(n) from copied where n = any($1)", [1, 2]) == 3
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.execute("select 1 / 0")
        await connection.execute("drop table copied")
    await hears_news(connection, workshop)


async def hears_news(connection: asyncpg.Connection, workshop: Workshop) -> None:
    called: asyncio.Queue[object] = asyncio.Queue()

    def call(*said: object) -> None:
        called.put_nowait(said[-1])

    await connection.add_listener("news", call)
    async with connected(workshop.url) as other:
        await other.execute("notify news, 'heard'")
    assert await asyncio.wait_for(called.get(), SECONDS) == "heard"
    await connection.remove_listener("news", call)


@pytest.mark.parametrize("lend", [Admin.administrator, Admin.resetter, Admin.tester], ids=lambda lend: lend.__name__)
def test_asyncpg_works_as_ever_afterwards(workshop: Workshop, lend: Lend) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            for _ in range(3):
                assert told(admin, "select 'line'") == "line"
                outstanding = ask(admin, "select 1", "select repeat('x', 300000)", "nonsense", "select 4")
                async with lend(admin) as connection:
                    assert [bool(answer.error) for answer in outstanding] == [False, False, True, False]
                    await works_as_ever(connection, workshop)
                await pid_of(admin)
            assert admin.losses == 0

    asyncio.run(go())


@asynccontextmanager
async def held_up(workshop: Workshop) -> AsyncIterator[tuple[Admin, asyncio.Future[int], asyncpg.Connection]]:
    """Somebody who waits for the line, while its answers wait for a lock of another's; they come in the end."""
    async with lending(workshop) as admin, connected(workshop.url) as other:
        await other.execute("select pg_advisory_lock(4711)")
        heard = ask(admin, "select pg_advisory_xact_lock(4711)", "select 'then'")
        working = asyncio.ensure_future(pid_of(admin))
        assert not await waits_or_is_done(working, other)
        assert heard == []
        yield admin, working, other
        assert [list(answer.rows) for answer in heard] == [[("",)], [("then",)]]
        assert admin.losses == 0


def test_who_comes_next_waits_for_what_was_asked(workshop: Workshop) -> None:
    async def go() -> None:
        async with held_up(workshop) as (admin, working, other):
            assert line_of(admin) is None
            await other.execute("select pg_advisory_unlock(4711)")
            await working

    asyncio.run(go())


def test_who_does_not_wait_any_longer_leaves_the_answers_to_who_does(workshop: Workshop) -> None:
    async def go() -> None:
        async with held_up(workshop) as (admin, working, other):
            working.cancel()
            assert isinstance(*await asyncio.gather(working, return_exceptions=True), asyncio.CancelledError)
            assert line_of(admin) is None
            await other.execute("select pg_advisory_unlock(4711)")
            async with admin.administrator() as connection:
                assert await connection.fetchval("select 'mine'") == "mine"

    asyncio.run(go())


@pytest.mark.parametrize("lend", [Admin.administrator, Admin.tester], ids=lambda lend: lend.__name__)
def test_there_is_none_but_after_work_that_left_the_session_set_up_for_it(workshop: Workshop, lend: Lend) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            assert line_of(admin) is not None
            async with lend(admin):
                assert line_of(admin) is None
            assert line_of(admin) is None
            async with admin.resetter():
                assert line_of(admin) is None
            assert line_of(admin) is not None
            with pytest.raises(ZeroDivisionError):
                async with admin.resetter():
                    raise ZeroDivisionError
            assert line_of(admin) is None

    asyncio.run(go())


def interrupted(admin: Admin, question: Question) -> None:
    def use(line: Line | None) -> None:
        assert line is not None
        line.ask([question])
        raise KeyboardInterrupt

    admin.with_line(use)


class TimeIsOver(Exception):
    """What a signal's handler raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_no_interruption_at_any_moment_keeps_the_turn(workshop: Workshop) -> None:
    def over(*_: object) -> None:
        raise TimeIsOver

    def use_until(admin: Admin, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            admin.with_line(lambda _: None)

    async def go() -> None:
        async with lending(workshop) as admin:
            for number in range(1000):
                with pytest.raises(TimeIsOver):
                    use_until(admin, 0.00005 + number * 0.0000001)
                assert not admin._line_turn.locked()

    before = signal.signal(signal.SIGALRM, over)
    try:
        asyncio.run(go())
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_interruption_gives_it_up_and_no_answer_is_taken_for_anothers(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            event, pid = lost(admin), admin._pid
            heard: list[Answer] = []
            with pytest.raises(KeyboardInterrupt):
                interrupted(admin, ("select 'old'", heard.append))
            line = line_of(admin)
            assert line is not None
            assert line.broken
            async with admin.administrator() as connection:
                assert await connection.fetchval("select 'mine'") == "mine"
                assert connection.get_server_pid() != pid
            assert event.is_set()
            assert (admin.losses, heard) == (1, [])
            await pid_of(admin)
            assert told(admin, "select 'new'") == "new"
            assert heard == []

    asyncio.run(go())


@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "lent"])
def test_given_up_it_is_lost_with_the_next_work(workshop: Workshop, at_work: bool) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            pid = admin._pid
            if at_work:
                async with admin.resetter():
                    admin.give_up_line()
            else:
                admin.give_up_line()
            assert await pid_of(admin) != pid
            assert admin.losses == 1
            assert told(admin, "select 'new'") == "new"

    asyncio.run(go())


def test_its_end_hears_what_was_asked(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin:
            heard = ask(admin, *["select 1"] * 100)
            await admin.close()
            assert [list(answer.rows) for answer in heard] == [[("1",)]] * 100
            assert line_of(admin) is None
            await admin.close()
            assert admin.losses == 0

    asyncio.run(go())


def test_its_end_waits_for_no_answer_for_ever(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "SECONDS_TO_CLOSE", 0.2)

    async def go() -> None:
        async with lending(workshop) as admin, connected(workshop.url) as other:
            await other.execute("select pg_advisory_lock(4711)")
            heard = ask(admin, "select pg_advisory_xact_lock(4711)")
            await admin.close()
            assert (admin.is_open, line_of(admin), heard) == (False, None, [])

    asyncio.run(go())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_does_not_hold_it(workshop: Workshop) -> None:
    async def go() -> None:
        async with lending(workshop) as admin, connected(workshop.url) as other:
            with child_that_let_go(admin):
                assert answers(admin, "select pg_advisory_lock(4711)")[0].error == ""
                assert admin._connection is not None
                admin._connection.terminate()  # says nothing to the server, which sees the end of the socket
                await other.execute("set lock_timeout = '30s'; select pg_advisory_lock(4711)")

    asyncio.run(go())


@contextmanager
def child_that_let_go(admin: Admin) -> Iterator[None]:
    """Lives until the end of the block."""
    (ready, says), (end, ends) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        pid = os.fork()
    if pid == 0:
        try:
            os.close(ends)
            admin.let_go()
            os.write(says, b"x")
            os.read(end, 1)
        finally:
            os._exit(0)
    os.close(says)
    assert os.read(ready, 1) == b"x"
    yield
    os.close(ends)
    os.waitpid(pid, 0)
    for each in (ready, end):
        os.close(each)


READY, NOTICE = b"Z\0\0\0\5I", b"N\0\0\0\x0bMwarn\0\0"
TEXT = b"D\0\0\0\x10\0\2\0\0\0\2ok\xff\xff\xff\xff"


class OneEnd:
    """Of a pair of sockets, as asyncio's transports give theirs; what the server says is in the test's hands."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.ours if name == "socket" else None


@pytest.fixture
def end_of_line() -> Iterator[tuple[OneEnd, Line]]:
    one = OneEnd()
    line = Line(one, 16)
    yield one, line
    line.close()
    one.ours.close()
    one.theirs.close()


def test_an_answer_that_comes_byte_by_byte_is_whole(end_of_line: tuple[OneEnd, Line]) -> None:
    one, line = end_of_line
    heard: list[Answer] = []
    line.ask([("select", heard.append)])
    for number in (NOTICE + TEXT + NOTICE + READY)[:-1]:
        one.theirs.sendall(bytes([number]))
        line.listen()
        assert heard == []
    one.theirs.sendall(READY[-1:])
    line.listen()
    assert heard == [Answer([("ok", None)])]
    assert not line.is_busy


def test_it_is_busy_until_the_end_of_what_the_server_says_unasked(end_of_line: tuple[OneEnd, Line]) -> None:
    one, line = end_of_line
    heard: list[Answer] = []
    line.ask([("select", heard.append)])
    one.theirs.sendall(READY + NOTICE[:3])
    line.listen()
    assert heard == [Answer([])]
    assert line.is_busy
    one.theirs.sendall(NOTICE[3:])
    line.listen()
    assert not line.is_busy


def test_an_answer_that_was_told_is_not_told_again(end_of_line: tuple[OneEnd, Line]) -> None:
    one, line = end_of_line
    heard: list[Answer] = []

    def fails(_: Answer) -> None:
        raise ZeroDivisionError

    line.ask([("select", fails), ("select", heard.append)])
    one.theirs.sendall(READY + TEXT + READY)
    with pytest.raises(ZeroDivisionError):
        line.listen()
    one.theirs.sendall(NOTICE)
    line.listen()
    assert heard == [Answer([("ok", None)])]


def test_an_end_in_the_middle_of_an_answer_breaks_it(end_of_line: tuple[OneEnd, Line]) -> None:
    one, line = end_of_line
    heard: list[Answer] = []
    line.ask([("select", heard.append)])
    one.theirs.sendall(TEXT[:4])
    one.theirs.close()
    line.listen()
    assert (line.broken, heard) == (True, [])
    line.ask([("select", heard.append)])
    line.listen()
    assert (line.broken, heard) == (True, [])
