"""Connections that outlive their event loop: what they keep, what they forget, and when they are not used."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import os
import re
import select
import socket
import ssl
import struct
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pgdbm
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keeper.runs import a_job, a_run, wait_until

from pytest_pgdbm.connections import transplant
from pytest_pgdbm.connections.transplant import ParkedConnections
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer

Body = Callable[[asyncpg.Pool], Awaitable[Any]]

PID = "select pg_backend_pid()"
SIZE = 3


class Server:
    """A server of the tests' own that asks for a password (SCRAM) over TCP and over its socket."""

    def __init__(self, folder: Path) -> None:
        run = a_run(folder)
        run.folder.mkdir(mode=0o700)
        new_record(run.folder)
        job = a_job(run)
        self._server = EmbeddedServer(job)
        started = self._server.start()
        self.host, self.port = started.host, started.port
        who = f"{job.admin.user}:{quote(job.admin.password or '')}"
        self.tcp = f"postgresql://{who}@{started.host}:{started.port}/postgres"
        self.unix = f"postgresql://{who}@/postgres?host={quote(started.socket_dir or '')}&port={started.port}"
        self.who = who

    def stop(self) -> None:
        self._server.stop()

    def ask(self, query: str, *args: Any) -> Any:
        """What a connection apart from all others is told."""

        async def asked() -> Any:
            connection = await asyncpg.connect(self.tcp)
            try:
                return await connection.fetchval(query, *args)
            finally:
                await connection.close()

        return asyncio.run(asked())

    def serves(self, *pids: int) -> bool:
        """Whether any of these processes is there."""
        return bool(self.ask("select exists (select from pg_stat_activity where pid = any($1::int[]))", list(pids)))


class Loops:
    """Runs one loop after the other, each with a pool whose connections are parked at its end."""

    def __init__(self, url: str, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        self.url = url
        self.new_loop = new_loop
        self.parked = ParkedConnections(SIZE)
        self.pool_options: dict[str, Any] = {}

    def run(self, body: Body) -> Any:
        """What the body returns, given the pool of a new loop."""
        loop = self.new_loop()
        try:
            return loop.run_until_complete(self._with_pool(body))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def thrice(self, body: Body) -> None:
        """Runs the body in three loops, and sees that one server process serves all."""
        pids = {self.run(_with_pid(body)) for _ in range(3)}
        assert len(pids) == 1
        assert self.parked.on

    async def pool(self) -> asyncpg.Pool:
        options = {"min_size": 0, "max_size": SIZE, **self.pool_options}
        pool = await asyncpg.create_pool(self.url, **options)
        self.parked.adopt(pool)
        return pool

    async def _with_pool(self, body: Body) -> Any:
        pool = await self.pool()
        try:
            return await body(pool)
        finally:
            await self.parked.park(pool)
            await asyncio.wait_for(pool.close(), 2)
            await asyncio.sleep(0)


def _with_pid(body: Body) -> Body:
    async def wrapped(pool: asyncpg.Pool) -> int:
        pid = await pool.fetchval(PID)
        await body(pool)
        assert pid == await pool.fetchval(PID)
        return int(pid)

    return wrapped


async def get_pid(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval(PID))


async def get_pids(pool: asyncpg.Pool) -> set[int]:
    """The processes of as many connections as the pool may have, used at once."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.acquire()) for _ in range(SIZE)]
        return set(await asyncio.gather(*(connection.fetchval(PID) for connection in connections)))


def new_debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("transplant"))
    yield server
    gc.collect()  # what was not closed warns now, and warnings are errors
    server.stop()


KINDS = {
    "asyncio": asyncio.new_event_loop,
    "debug": new_debug_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=["tcp-asyncio", "unix-asyncio", "tcp-debug", "tcp-uvloop", "unix-uvloop"])
def loops(request: pytest.FixtureRequest, server: Server) -> Iterator[Loops]:
    over, kind = request.param.split("-")
    yield from closed(Loops(getattr(server, over), KINDS[kind]))


@pytest.fixture
def plainly(server: Server) -> Iterator[Loops]:
    """For what does not depend on the kind of loop."""
    yield from closed(Loops(server.unix))


def closed(loops: Loops) -> Iterator[Loops]:
    yield loops
    loops.parked.close()


# What is kept.


def test_one_server_process_serves_300_loops(plainly: Loops):
    assert len({plainly.run(get_pid) for _ in range(300)}) == 1


def test_a_pool_of_several_connections_finds_all_of_them_again(loops: Loops):
    first, second = loops.run(get_pids), loops.run(get_pids)
    assert first == second
    assert len(first) == SIZE


def test_the_connection_is_a_real_one_of_the_class_that_was_asked_for(loops: Loops):
    class Mine(asyncpg.Connection):
        pass

    async def init(connection):
        made.append(type(connection))

    async def body(pool):
        async with pool.acquire() as connection:
            assert isinstance(connection, asyncpg.Connection)
            connection.add_termination_listener(lambda _: ended.append(1))

    made: list[type] = []
    ended: list[int] = []
    loops.pool_options = {"connection_class": Mine, "init": init}
    loops.thrice(body)
    assert made == [Mine] * 3
    assert len(ended) == 3


def test_the_connection_belongs_to_the_loop_that_runs(loops: Loops):
    async def init(connection):
        assert connection._loop is asyncio.get_running_loop()

    loops.pool_options = {"init": init}
    loops.thrice(get_pid)


def test_it_knows_what_the_server_said_at_the_login(loops: Loops, server: Server):
    async def known(pool):
        async with pool.acquire() as connection:
            said = connection.get_settings()
            names = "server_version", "TimeZone", "client_encoding", "is_superuser", "application_name", "DateStyle"
            return connection.get_server_version(), [getattr(said, name) for name in names]

    fresh = loops.run(known)
    assert [loops.run(known) for _ in range(2)] == [fresh, fresh]


def test_a_setting_that_the_server_changed_meanwhile_is_told_as_it_is_now(plainly: Loops, server: Server):
    async def style(pool):
        async with pool.acquire() as connection:
            return connection.get_settings().IntervalStyle, await connection.fetchval("show intervalstyle")

    async def changed(pool, statement):
        async with pool.acquire() as connection:
            before = await connection.fetchval("show intervalstyle")
            await connection.execute(statement)
            await connection.execute("select pg_reload_conf()")
            while await connection.fetchval("show intervalstyle") == before:
                await asyncio.sleep(0.01)
            return connection.get_server_pid()

    pid = plainly.run(get_pid)
    assert plainly.run(style) == ("postgres", "postgres")
    assert plainly.run(lambda pool: changed(pool, "alter system set intervalstyle = iso_8601")) == pid
    assert plainly.run(style) == ("iso_8601", "iso_8601")
    assert plainly.run(lambda pool: changed(pool, "alter system reset intervalstyle")) == pid
    assert plainly.run(style) == ("postgres", "postgres")


def test_transactions_commit_roll_back_and_nest(loops: Loops):
    async def body(pool):
        async with pool.acquire() as connection:
            await connection.execute("create table kept (n int)")
            async with connection.transaction():
                await connection.execute("insert into kept values (1)")
                with contextlib.suppress(ZeroDivisionError):
                    async with connection.transaction():
                        await connection.execute("insert into kept values (2)")
                        _ = 1 / 0
            with pytest.raises(asyncpg.CheckViolationError):
                async with connection.transaction(isolation="serializable"):
                    await connection.execute("alter table kept add check (n > 5)")
            assert await connection.fetch("select n from kept") == [(1,)]
            await connection.execute("drop table kept")

    loops.thrice(body)


def test_cursors_and_prepared_statements(loops: Loops):
    async def body(pool):
        async with pool.acquire() as connection:
            statement = await connection.prepare("select $1::int * n from generate_series(1, 100) n")
            assert len(await statement.fetch(3)) == 100
            async with connection.transaction():
                rows = [row[0] async for row in statement.cursor(2, prefetch=7)]
                cursor = await connection.cursor("select generate_series(1, 10)")
                assert await cursor.fetch(2) == [(1,), (2,)]
            assert rows == list(range(2, 202, 2))
            await connection.executemany("select $1::int", [(n,) for n in range(1000)])

    loops.thrice(body)


def test_copy_in_and_out(loops: Loops):
    async def body(pool):
        async with pool.acquire() as connection:
            await connection.execute("create temp table copied (n int, t text)")
            records = [(n, "x" * n) for n in range(500)]
            assert await connection.copy_records_to_table("copied", records=records) == "COPY 500"
            out = io.BytesIO()
            await connection.copy_from_table("copied", output=out)
            out.seek(0)
            assert await connection.copy_to_table("copied", source=out) == "COPY 500"
            assert await connection.fetchval("select count(*) from copied") == 1000

    loops.thrice(body)


def test_a_failed_copy_leaves_the_connection_in_order(loops: Loops):
    async def broken():
        yield b"1\n"
        raise ZeroDivisionError

    async def body(pool):
        async with pool.acquire() as connection:
            await connection.execute("create temp table copied (n int)")
            with pytest.raises(ZeroDivisionError):
                await connection.copy_to_table("copied", source=broken())
        assert await pool.fetchval("select 1") == 1

    loops.thrice(body)


def test_notifications_reach_the_listener_of_this_loop_only(loops: Loops):
    async def body(pool):
        heard = asyncio.Queue()
        async with pool.acquire() as connection:
            await connection.add_listener("news", lambda *told: heard.put_nowait(told[1:]))
            await pool.execute("notify news, 'today'")
            pid, *told = await asyncio.wait_for(heard.get(), 5)
            assert told == ["news", "today"]
            assert pid != connection.get_server_pid()
            await connection.reset()

    async def deaf(pool):
        async with pool.acquire() as connection, pool.acquire() as other:
            for each in (connection, other):
                assert await each.fetch("select pg_listening_channels()") == []

    for _ in range(3):
        loops.run(body)
        loops.run(deaf)
    assert loops.parked.on


def test_notices_reach_the_log_listener_of_this_loop(loops: Loops):
    async def body(pool):
        told = []
        async with pool.acquire() as connection:
            listen = lambda _, message: told.append(message.message)  # noqa: E731
            connection.add_log_listener(listen)
            await connection.execute("do $$ begin raise notice 'hear this'; end $$")
            await asyncio.sleep(0)
            connection.remove_log_listener(listen)
        assert told == ["hear this"]

    loops.thrice(body)


SLEEPING = (
    "select exists (select from pg_stat_activity where pid = $1 and query like '%pg_sleep%' and state = 'active')"
)


@pytest.mark.parametrize("by", ["timeout", "task"])
def test_a_time_out_and_a_cancelled_task_cancel_the_statement_on_the_server(loops: Loops, server: Server, by: str):
    async def body(pool):
        async with pool.acquire() as connection, pool.acquire() as other:
            pid = connection.get_server_pid()
            if by == "timeout":
                with pytest.raises(asyncio.TimeoutError):
                    await connection.fetchval("select pg_sleep(60)", timeout=0.05)
            else:
                task = asyncio.ensure_future(connection.fetchval("select pg_sleep(60)"))
                while not await other.fetchval(SLEEPING, pid):
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await connection.fetchval("select 1", timeout=5) == 1
            assert not await other.fetchval(SLEEPING, pid)
            return {pid, other.get_server_pid()}

    loops.run(get_pids)  # more are parked than the body takes: a cancellation must not take one of them
    pids = [loops.run(body) for _ in range(3)]
    assert pids == [pids[0]] * 3
    assert pids[0] <= loops.run(get_pids)


def test_rows_of_five_megabytes(loops: Loops):
    async def body(pool):
        value = "x" * 5_000_000
        rows = await pool.fetch("select $1::text || n from generate_series(1, 2) n", value)
        assert [row[0] for row in rows] == [value + "1", value + "2"]

    loops.thrice(body)


def test_types_that_were_made_or_changed_in_an_earlier_loop(loops: Loops):
    async def make(pool):
        await pool.execute("create type mood as enum ('sad', 'glad')")
        assert await pool.fetchval("select array['sad', 'glad']::mood[]") == ["sad", "glad"]
        await pool.execute("create type pair as (a int, b mood)")

    async def use(pool):
        assert await pool.fetchval("select row(1, 'sad')::pair") == (1, "sad")
        await pool.execute("alter type pair drop attribute a")

    async def again(pool):
        assert await pool.fetchval("select row('sad')::pair") == ("sad",)
        await pool.execute("drop type pair")
        await pool.execute("drop type mood")

    for body in (make, use, again):
        loops.run(body)
    assert loops.parked.on


def test_what_a_pool_does_with_each_new_connection_it_does_with_a_revived_one(loops: Loops):
    async def init(connection):
        await connection.execute("set statement_timeout = '7s'")
        await connection.set_type_codec("int8", encoder=str, decoder=lambda told: f"<{told}>", schema="pg_catalog")

    async def body(pool):
        async with pool.acquire() as connection:
            assert await connection.fetchval("show statement_timeout") == "7s"
            assert await connection.fetchval("select 5::int8") == "<5>"

    loops.pool_options = {"init": init}
    for _ in range(3):
        loops.run(body)
    assert loops.parked.on


def test_a_pool_that_pgdbm_made(plainly: Loops):
    async def body():
        config = pgdbm.DatabaseConfig(
            connection_string=plainly.url,
            min_connections=0,
            max_connections=SIZE,
            shared_pool_search_path=None,
            server_settings={"search_path": "pg_catalog"},
        )
        pool = await pgdbm.AsyncDatabaseManager.create_shared_pool(config)
        plainly.parked.adopt(pool)
        db = pgdbm.AsyncDatabaseManager(pool=pool, schema="pg_catalog")
        assert await db.fetch_value("select count(*) from {{tables.pg_class}}") > 0
        assert await db.fetch_value("show search_path") == "pg_catalog"
        pid = await db.fetch_value(PID)
        await plainly.parked.park(pool)
        await pool.close()
        return pid

    assert len({asyncio.run(body()) for _ in range(3)}) == 1


def test_several_hosts_of_which_the_first_is_down(server: Server):
    with socket.socket() as nobody:
        nobody.bind((server.host, 0))
        hosts = f"{server.host}:{nobody.getsockname()[1]},{server.host}:{server.port}"
        loops = Loops(f"postgresql://{server.who}@{hosts}/postgres")

        async def body(pool):
            with pytest.raises(asyncio.TimeoutError):
                await pool.fetchval("select pg_sleep(60)", timeout=0.05)

        loops.thrice(body)
        loops.parked.close()


def test_loops_in_several_threads_at_once(plainly: Loops):
    async def body(pool):
        async with pool.acquire() as connection:
            pid = connection.get_server_pid()
            for n in range(5):
                assert tuple(await connection.fetchrow("select pg_backend_pid(), $1::int", n)) == (pid, n)
        seen.append(pid)

    def run() -> None:
        for _ in range(40):
            plainly.run(body)

    seen: list[int] = []
    threads = [threading.Thread(target=run) for _ in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == SIZE * 40
    assert len(set(seen)) <= 2 * SIZE  # at the very first, each makes one, and another to see that this works
    assert plainly.parked.on


# What is forgotten.

SESSION = """
select (select array_agg(row(name, setting, source, coalesce(sourcefile, ''))::text order by name)
        from pg_settings where name not like '%.%') -- those come with a library
    || (select array_agg(name) from pg_prepared_statements where name !~ '^__asyncpg')
    || (select array_agg(name) from pg_cursors)
    || (select array_agg(channel) from pg_listening_channels() channel)
    || (select array_agg(row(objid, mode)::text) from pg_locks where locktype = 'advisory')
    || (select array_agg(relname::text) from pg_class where relnamespace = pg_my_temp_schema())
    || array[current_user, session_user]::text[]
"""
LEAVES = [
    "set work_mem = '123MB'",
    "set session characteristics as transaction read only",
    "set timezone = 'Asia/Kathmandu'",
    "set client_encoding = 'latin1'",
    "set datestyle = 'german'",
    "set search_path = information_schema",
    "set role pg_monitor",
    "set session authorization player",
    "set session_replication_role = replica",
    "set default_transaction_isolation = serializable",
    "set application_name = 'somebody'",
    "select set_config('statement_timeout', '77s', false)",
    "create temp table t as select 1 as n",
    "create temp view v as select 1 as n",
    "create temp sequence s",
    "listen news",
    "select pg_advisory_lock(7)",
    "select pg_advisory_lock_shared(8)",
    "prepare p as select 1",
    "declare c cursor with hold for select 1",
    "select nextval('counted')",
    "load 'plpgsql'",
    "begin",
    "savepoint here",
    "commit",
    "rollback",
    "begin; select 1/0",
    "select 1/0",
    "select * from no_such_table",
    "notify news",
    "analyze pg_class",
    "do $$ begin raise notice 'a'; end $$",
]


@pytest.fixture(scope="module")
def player(server: Server) -> None:
    async def make() -> None:
        connection = await asyncpg.connect(server.tcp)
        await connection.execute("create role player; create sequence counted; grant all on counted to player")
        await connection.close()

    asyncio.run(make())


def session(connection: asyncpg.Connection) -> Awaitable[list[str]]:
    return connection.fetchval(SESSION)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(LEAVES), max_size=8))
def test_a_session_begins_as_a_new_one_whatever_the_last_one_did(plainly: Loops, player: None, statements: list[str]):
    async def leave(pool):
        async with pool.acquire() as connection:
            for statement in statements:
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                    await connection.execute(statement)
            if connection.is_in_transaction():
                await connection.execute("rollback")

    async def look(pool):
        async with pool.acquire() as connection, contextlib.AsyncExitStack() as stack:
            fresh = await asyncpg.connect(plainly.url)
            stack.push_async_callback(fresh.close)
            assert await session(connection) == await session(fresh)
            for name in ("client_encoding", "TimeZone", "DateStyle", "is_superuser", "session_authorization"):
                assert getattr(connection.get_settings(), name) == getattr(fresh.get_settings(), name)
            with pytest.raises(asyncpg.PostgresError, match=r"not yet defined in this session"):
                await connection.fetchval("select lastval()")
            assert await connection.fetchval("select 'é'") == "é"
            return connection.get_server_pid()

    first = plainly.run(get_pid)
    plainly.run(leave)
    assert plainly.run(look) == first


def test_a_custom_setting_that_was_once_set_is_empty_instead_of_unknown(plainly: Loops):
    # As on any pooled connection; no statement of PostgreSQL undoes it.
    async def read(pool):
        return await pool.fetchval("select current_setting('app.tenant', true)")

    assert plainly.run(read) is None
    plainly.run(lambda pool: pool.execute("set app.tenant = 'one'"))
    assert plainly.run(read) == ""


def test_forget_ends_the_parked_sessions_and_the_next_loop_opens_a_new_one(loops: Loops, server: Server):
    before = loops.run(get_pids)
    loops.parked.forget()
    wait_until(lambda: not server.serves(*before))
    after = loops.run(get_pids)
    assert not before & after
    assert loops.run(get_pids) == after


def test_at_the_end_of_the_run_nothing_is_left_on_the_server(loops: Loops, server: Server):
    pids = loops.run(get_pids)
    assert server.serves(*pids)
    loops.parked.close()
    late = loops.run(get_pids)
    wait_until(lambda: not server.serves(*pids, *late))


# What is not parked, and what is not revived.


def test_a_connection_that_is_out_with_an_open_transaction_is_not_parked(loops: Loops, server: Server):
    async def leak():
        pool = await loops.pool()
        assert await get_pids(pool) == pids
        out = await pool.acquire()
        await out.execute("begin; create table never ()")
        await loops.parked.park(pool)
        assert pool.get_size() == 1
        pid = out.get_server_pid()
        pool.terminate()
        await asyncio.sleep(0)
        return pid

    pids = loops.run(get_pids)
    loop = loops.new_loop()
    pid = loop.run_until_complete(leak())
    loop.close()
    wait_until(lambda: not server.serves(pid))
    assert server.ask("select to_regclass('never')") is None
    assert pids - loops.run(get_pids) == {pid}


def test_no_more_are_parked_than_there_is_room_for(server: Server):
    loops = Loops(server.unix)
    loops.parked = ParkedConnections(1)
    before, after = loops.run(get_pids), loops.run(get_pids)
    assert len(before & after) == 1
    wait_until(lambda: not server.serves(*(before - after)))
    loops.parked.close()


def test_a_session_that_the_server_ended_meanwhile_is_replaced(loops: Loops, server: Server):
    before = loops.run(get_pids)
    one = min(before)
    server.ask("select pg_terminate_backend($1, 5000)", one)
    after = loops.run(get_pids)
    assert before - after == {one}
    assert len(after) == SIZE
    assert loops.parked.on


def test_a_session_that_was_ended_while_its_pool_was_idle_is_not_parked(loops: Loops, server: Server):
    async def body(pool):
        pid = await get_pid(pool)
        other = await asyncpg.connect(loops.url)
        await other.execute(f"select pg_terminate_backend({pid}, 5000)")
        await other.close()
        return pid

    before = loops.run(body)
    assert loops.run(get_pid) != before
    assert loops.parked.on


def test_a_session_that_was_parked_for_too_long_is_replaced(
    plainly: Loops, server: Server, monkeypatch: pytest.MonkeyPatch
):
    before = plainly.run(get_pid)
    monkeypatch.setattr(transplant, "SECONDS_PARKED", 0.0)
    assert plainly.run(get_pid) != before
    wait_until(lambda: not server.serves(before))


def test_a_session_that_is_too_old_is_replaced_though_it_is_used_all_the_time(
    plainly: Loops, server: Server, monkeypatch: pytest.MonkeyPatch
):
    before = plainly.run(get_pid)
    monkeypatch.setattr(transplant, "SECONDS_OF_LIFE", 0.1)
    wait_until(lambda: plainly.run(get_pid) != before)
    wait_until(lambda: not server.serves(before))


def test_another_pool_does_not_get_the_sessions_of_this_one(loops: Loops):
    before = loops.run(get_pid)
    loops.pool_options = {"server_settings": {"work_mem": "99MB"}}

    async def body(pool):
        return await get_pid(pool), await pool.fetchval("show work_mem")

    pid, shown = loops.run(body)
    assert pid != before
    assert shown == "99MB"


def test_sessions_end_at_the_end_of_the_run_though_a_forked_process_has_their_sockets(plainly: Loops, server: Server):
    pid = plainly.run(get_pid)
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        plainly.parked.close()
        wait_until(lambda: not server.serves(pid))
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_the_run_may_end_while_a_loop_is_being_left(plainly: Loops, server: Server):
    async def body(turns):
        pool = await plainly.pool()
        pids = await get_pids(pool)
        parking = asyncio.ensure_future(plainly.parked.park(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        plainly.parked.close()
        await parking
        await pool.close()
        return pids

    seen = set()
    for turns in range(0, 24, 3):
        plainly.parked = ParkedConnections(SIZE)
        plainly.run(get_pids)
        seen |= asyncio.run(body(turns))
    wait_until(lambda: not server.serves(*seen))


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads, since Python 3.12
        return os.fork()


def test_a_forked_process_opens_connections_of_its_own(plainly: Loops):
    before = plainly.run(get_pid)
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.write(writer, str(plainly.run(get_pid)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert int(told.read()) != before
    os.waitpid(child, 0)
    assert plainly.run(get_pid) == before


def test_a_connect_that_is_cancelled_on_the_way_leaves_nothing_behind(loops: Loops, server: Server):
    async def cancelled(pool, turns):
        task = asyncio.ensure_future(pool.fetchval(PID))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    pids = set()
    for turns in range(12):
        pids.add(loops.run(get_pid))
        loops.run(partial(cancelled, turns=turns))
    assert loops.parked.on
    pids.add(loops.run(get_pid))
    loops.parked.close()
    wait_until(lambda: not server.serves(*pids))


def test_connections_that_were_expired_are_not_parked(loops: Loops, server: Server):
    async def body(pool):
        before = await get_pids(pool)
        await pool.expire_connections()
        return before | {await get_pid(pool)}

    before = loops.run(body)
    assert not before & loops.run(get_pids)
    wait_until(lambda: not server.serves(*before))


# When connections are opened as ever.


def fell_back(loops: Loops, caplog: pytest.LogCaptureFixture) -> list[str]:
    """That nothing is kept and all works; returns what was logged of it."""
    with caplog.at_level(logging.DEBUG, "pytest_pgdbm"):
        assert loops.run(get_pid) != loops.run(get_pid)
        assert len(loops.run(get_pids)) == SIZE
    assert not loops.parked.on
    loops.parked.close()
    return [record.getMessage() for record in caplog.records if record.name == "pytest_pgdbm"]


def test_encrypted_connections_end_with_their_loop(server: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    with standing_before(server, encrypting(tmp_path)) as port:
        for mode in ("prefer", "require"):
            caplog.clear()
            loops = Loops(f"postgresql://{server.who}@127.0.0.1:{port}/postgres?sslmode={mode}")
            assert fell_back(loops, caplog) == [
                "server connections end with their event loop in this run: they are encrypted, and the state of the"
                " encryption cannot move"
            ]


def test_what_is_behind_a_pooler_is_left_to_it(server: Server, caplog: pytest.LogCaptureFixture):
    with standing_before(server, alter=with_a_key_of_its_own) as port:
        loops = Loops(f"postgresql://{server.who}@127.0.0.1:{port}/postgres?sslmode=disable")
        assert fell_back(loops, caplog) == [
            "server connections end with their event loop in this run: a revived connection is served by another"
            " process than it was told"
        ]


@pytest.mark.parametrize("version", ["0.29.0", "0.33.0", "1.0.0rc1"])
def test_an_asyncpg_that_is_not_known_is_left_alone(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, version: str
):
    monkeypatch.setattr(asyncpg, "__version__", version)
    with caplog.at_level(logging.DEBUG, "pytest_pgdbm"):
        loops = Loops(server.tcp)
    assert fell_back(loops, caplog) == [
        "server connections end with their event loop in this run:"
        f" asyncpg {version} is not one that this was tested with"
    ]


def test_a_loop_that_cannot_take_a_socket_over_gets_plain_connections(server: Server, caplog: pytest.LogCaptureFixture):
    class Stubborn(asyncio.SelectorEventLoop):
        async def create_connection(self, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
            if sock is not None:
                raise NotImplementedError("no sockets from outside")
            return await super().create_connection(*args, **kwargs)

    assert fell_back(Loops(server.tcp + "?sslmode=disable", Stubborn), caplog) == [
        "server connections end with their event loop in this run: a parked connection could not be revived:"
        " NotImplementedError('no sockets from outside')"
    ]


def test_what_the_server_says_to_a_login_reaches_the_caller(server: Server):
    async def refused(pool):
        await pool.fetchval("select 1")

    for url, error in (
        (server.tcp + "x", asyncpg.InvalidCatalogNameError),
        (f"postgresql://nobody:x@{server.host}:{server.port}/postgres", asyncpg.InvalidPasswordError),
        (f"postgresql://{server.who}@{server.host}:1/postgres", ConnectionRefusedError),
    ):
        loops = Loops(url)
        with pytest.raises(error):
            loops.run(refused)
        assert loops.parked.on


Greet = Callable[[socket.socket], socket.socket]
Alter = Callable[[bytes], bytes]


@contextlib.contextmanager
def standing_before(server: Server, greet: Greet = lambda client: client, alter: Alter = bytes) -> Iterator[int]:
    """The port of a front of the server, which may greet each client in its own way, and alter what the server says."""

    def serve(client: socket.socket) -> None:
        address = server.host, server.port
        with contextlib.suppress(OSError), client, greet(client) as front, socket.create_connection(address) as behind:
            while _passed_on(front, behind, alter):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                start(serve, listener.accept()[0])

    def start(target: Callable[..., None], *args: Any) -> None:
        threads.append(threading.Thread(target=target, args=args, daemon=True))
        threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def _passed_on(front: socket.socket, behind: socket.socket, alter: Alter) -> bool:
    waiting = isinstance(front, ssl.SSLSocket) and front.pending()
    readable = [front] if waiting else select.select([front, behind], [], [])[0]
    for one, other, change in ((front, behind, bytes), (behind, front, alter)):
        if one in readable:
            data = one.recv(65536)
            if not data:
                return False
            other.sendall(change(data))
    return True


def encrypting(folder: Path) -> Greet:
    """Not every PostgreSQL is built with TLS. https://www.postgresql.org/docs/current/protocol-flow.html"""
    certificate = folder / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def greet(client: socket.socket) -> socket.socket:
        assert struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL)) == (8, 80877103)
        client.sendall(b"S")
        return context.wrap_socket(client, server_side=True)

    return greet


def with_a_key_of_its_own(said: bytes) -> bytes:
    """What a pooler makes of the server's login: the key for cancelling is the pooler's."""
    return re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c\0\0\x47\x11", said, count=1, flags=re.DOTALL)


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEICKo+CcpPuLT7J8J3R0eaXvCxoHnTuXx6v0xKxtbRlyH
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBPjCB8aADAgECAhRNuP4GIRZ1F/cxmi7LThsR4tOdrjAFBgMrZXAwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzEwNDMyMFoYDzIxMjYxMDMwMTA0MzIw
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwKjAFBgMrZXADIQA8oPA+jNo3W8eDYxQK
6WxjIr7MzHX6+Oz0hkCqBcKko6NTMFEwHQYDVR0OBBYEFL7m16U4hgL2hZju91+k
Hh4vHSGMMB8GA1UdIwQYMBaAFL7m16U4hgL2hZju91+kHh4vHSGMMA8GA1UdEwEB
/wQFMAMBAf8wBQYDK2VwA0EAjHrWJSfcH2OP9ATWwqR+q7/ke0D0axwbHfVXwm6u
mE7UAp2oKxdQsuMlkQcxpQI/zK3xm1jurvr1Lc+jbpexCg==
-----END CERTIFICATE-----
"""
"""Signed by itself, and used here only."""
