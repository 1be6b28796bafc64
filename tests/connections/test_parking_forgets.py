"""Connections that outlive their event loop: what they forget, and which are not kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import warnings
import weakref
from collections.abc import Awaitable
from functools import partial

import asyncpg
import pytest
from connections.loops import PID, SIZE, Loops, Server, get_pid, get_pids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keeper.runs import wait_until

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.parking import ParkedConnections, shelf

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
    assert loops.parked.off_because == ""


def test_a_session_that_was_ended_while_its_pool_was_idle_is_not_parked(loops: Loops, server: Server):
    async def body(pool):
        pid = await get_pid(pool)
        other = await asyncpg.connect(loops.url)
        await other.execute(f"select pg_terminate_backend({pid}, 5000)")
        await other.close()
        return pid

    before = loops.run(body)
    assert loops.run(get_pid) != before
    assert loops.parked.off_because == ""


def test_a_session_that_was_parked_for_too_long_is_replaced(
    plainly: Loops, server: Server, monkeypatch: pytest.MonkeyPatch
):
    before = plainly.run(get_pid)
    monkeypatch.setattr(shelf, "SECONDS_PARKED", 0.0)
    assert plainly.run(get_pid) != before
    wait_until(lambda: not server.serves(before))


def test_a_session_that_is_too_old_is_replaced_though_it_is_used_all_the_time(
    plainly: Loops, server: Server, monkeypatch: pytest.MonkeyPatch
):
    before = plainly.run(get_pid)
    monkeypatch.setattr(shelf, "SECONDS_OF_LIFE", 0.1)
    wait_until(lambda: plainly.run(get_pid) != before)
    wait_until(lambda: not server.serves(before))


def test_a_session_that_nobody_needs_is_ended_when_another_is_parked(
    plainly: Loops, server: Server, monkeypatch: pytest.MonkeyPatch
):
    before = plainly.run(get_pids)
    monkeypatch.setattr(shelf, "SECONDS_PARKED", 0.3)
    wait_until(lambda: plainly.run(get_pid) and len(plainly.parked) == 1)
    wait_until(lambda: len([pid for pid in before if server.serves(pid)]) == 1)


def test_a_server_that_crashed_and_came_back_serves_the_next_loop(plainly: Loops, server: Server):
    def comes_back() -> set[int] | None:
        try:
            return plainly.run(get_pids)
        except FAILURES:  # it is not there, or still starting
            return None

    before = plainly.run(get_pids)
    os.kill(min(before), signal.SIGKILL)  # the server ends all its sessions then, and starts anew
    after = wait_until(comes_back)
    assert not before & after
    assert plainly.run(get_pids) == after
    assert plainly.parked.off_because == ""


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
    assert loops.parked.off_because == ""
    pids.add(loops.run(get_pid))
    loops.parked.close()
    wait_until(lambda: not server.serves(*pids))


def test_a_connection_that_its_pool_gave_up_is_not_parked(plainly: Loops, server: Server):
    async def idle(pool):
        pid = await get_pid(pool)
        while pool.get_size():
            await asyncio.sleep(0.01)
        return pid

    plainly.pool_options = {"max_inactive_connection_lifetime": 0.05}
    before = plainly.run(idle)
    assert plainly.run(get_pid) != before
    plainly.pool_options = {"max_queries": 1}
    before = plainly.run(get_pid)
    assert plainly.run(get_pid) != before
    assert plainly.parked.off_because == ""


def test_a_loop_that_has_ended_is_forgotten(loops: Loops):
    async def body(pool):
        ended.append(weakref.ref(asyncio.get_running_loop()))
        return await get_pids(pool)

    ended: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        loops.run(body)
    gc.collect()
    assert [loop for loop in ended if loop() is not None] == []


def test_connections_that_were_expired_are_not_parked(loops: Loops, server: Server):
    async def body(pool):
        before = await get_pids(pool)
        await pool.expire_connections()
        return before | {await get_pid(pool)}

    before = loops.run(body)
    assert not before & loops.run(get_pids)
    wait_until(lambda: not server.serves(*before))
