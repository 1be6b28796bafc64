"""Connections that outlive their event loop: what a revived one can do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading

import asyncpg
import pgdbm
import pytest
from connections.loops import KINDS, PID, SIZE, Loops, Server, get_pid, get_pids


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
    assert loops.parked.off_because == ""


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


# Before that the server ignores a request to cancel, as it does while it waits for its client.
SLEEPING = "select exists (select from pg_stat_activity where pid = $1 and wait_event = 'PgSleep')"


@pytest.mark.parametrize("by", ["timeout", "task"])
def test_a_time_out_and_a_cancelled_task_cancel_the_statement_on_the_server(loops: Loops, server: Server, by: str):
    async def body(pool):
        async with pool.acquire() as connection, pool.acquire() as other:
            pid = connection.get_server_pid()
            if by == "timeout":
                with pytest.raises(asyncio.TimeoutError):
                    await connection.fetchval("select pg_sleep(60)", timeout=0.2)
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
    assert loops.parked.off_because == ""


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
    assert loops.parked.off_because == ""


def test_the_callbacks_of_a_pool_are_called_as_ever(loops: Loops):
    async def setup(connection):
        called.append("setup")

    async def reset(connection):
        called.append("reset")

    async def init(connection):
        called.append("init")

    called: list[str] = []
    loops.pool_options = {"setup": setup, "reset": reset, "init": init}
    for _ in range(3):
        loops.run(get_pid)
        assert called == ["init", "setup", "reset", "setup"]  # the last one to clean it for the next loop
        called.clear()


def test_without_a_cache_of_statements(loops: Loops):
    async def body(pool):
        async with pool.acquire() as connection:
            for n in range(3):
                assert await connection.fetchval("select $1::int", n) == n
            assert await connection.fetchval("select count(*) from pg_prepared_statements") == 0

    loops.pool_options = {"statement_cache_size": 0}
    loops.thrice(body)


def test_one_kind_of_loop_after_another_takes_what_the_first_one_left(server: Server):
    loops = Loops(server.tcp)
    pids = []
    for kind in ("asyncio", "uvloop", "debug", "uvloop", "asyncio"):
        loops.new_loop = KINDS[kind]
        pids.append(loops.run(get_pid))
    assert pids == [pids[0]] * 5
    assert len(loops.parked) == 1
    loops.parked.close()


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
                await pool.fetchval("select pg_sleep(60)", timeout=0.2)

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
    assert plainly.parked.off_because == ""
