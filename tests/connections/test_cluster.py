"""What stands for a kept server's cluster: changed by all that could reach the next run, and by nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from keeper.runs import a_job, a_run

from pytest_pgdbm.connections import cluster
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer

OURS = "pgdbm_0123456789_gw0"


class Server:
    """A server whose cluster nobody else changes."""

    def __init__(self, started: dict[str, object], user: str, password: str) -> None:
        self._where = {"host": started["host"], "port": started["port"], "user": user, "password": password}

    @asynccontextmanager
    async def connected(self, database: str = "postgres", **who: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(database=database, **{**self._where, **who})
        try:
            yield connection
        finally:
            await connection.close()

    async def states(self, *statements: str, database: str = "postgres") -> tuple[str, str]:
        """The state before and after the statements, by connections of their own as two runs have them."""
        async with self.connected() as connection:
            before = await cluster.state(connection)
        async with self.connected(database) as connection:
            for statement in statements:
                await connection.execute(statement)
        async with self.connected() as connection:
            return before, await cluster.state(connection)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = a_run(tmp_path_factory.mktemp("cluster"))
    run.folder.mkdir(mode=0o700)
    new_record(run.folder)
    job = a_job(run)
    embedded = EmbeddedServer(job)
    try:
        yield Server(vars(embedded.start()), job.admin.user, job.admin.password)
    finally:
        embedded.stop()


LASTING = [
    "create role somebody",
    "create role other",
    "grant somebody to other",
    "alter role somebody set work_mem = '8MB'",
    "alter role somebody password 'hunter2'",
    "revoke somebody from other",
    "drop role other",
    "alter system set work_mem = '8MB'",
    "alter system set work_mem = '16MB'",
    "alter system reset all",
    "alter database postgres set work_mem = '8MB'",
    "alter database postgres connection limit 5",
    "comment on database postgres is 'mine'",
    "grant connect on database postgres to somebody",
    "create database another",
    "drop database another",
    "create schema mine",
    "create table mine.t (id int primary key)",
    "alter table mine.t add column more text",
    "drop schema mine cascade",
    "create function f() returns int language sql as 'select 1'",
    "create or replace function f() returns int language sql as 'select 2'",
    "create domain small as int check (value < 9)",
    "create function e() returns event_trigger language plpgsql as 'begin end'",
    "create event trigger e on ddl_command_end execute function e()",
    "alter default privileges grant select on tables to public",
    "grant all on schema public to somebody",
    "revoke execute on function pg_catalog.pg_sleep from public",
]
"""Each after those before it."""


def test_what_is_left_in_the_cluster_changes_its_state(server: Server) -> None:
    states = {statement: asyncio.run(server.states(statement)) for statement in LASTING}
    assert [statement for statement, (before, after) in states.items() if after == before] == []


@pytest.mark.parametrize(
    "statement",
    [
        "select 1",
        "analyze",
        "vacuum",
        "vacuum freeze",
        "checkpoint",
        "begin; create role never; rollback",
        f"create database {OURS}",
        f"alter database {OURS} set work_mem = '8MB'; drop database {OURS}",
        "select pg_stat_reset()",
    ],
)
def test_what_leaves_nothing_does_not_change_it(server: Server, statement: str) -> None:
    parts = statement.split("; ")
    before, after = asyncio.run(server.states(*parts))
    assert after == before


def test_what_is_done_within_the_plugins_databases_does_not_change_it(server: Server) -> None:
    async def go() -> None:
        await server.states(f"create database {OURS}")
        before, after = await server.states(
            "create schema s",
            "create table s.t (id serial primary key)",
            "create temp table t (id int)",
            "create function f() returns int language sql as 'select 1'",
            database=OURS,
        )
        assert after == before
        async with server.connected() as connection:
            await cluster.check(connection, before)
            assert await databases(connection) == []

    asyncio.run(go())


def test_databases_of_dead_runs_go_with_who_is_in_them(server: Server) -> None:
    async def go() -> None:
        async with server.connected() as connection:
            wanted = await cluster.state(connection)
            for name in (OURS, "pgdbm_fedcba9876_main", "pgdbm_fedcba9876_main_2"):
                await connection.execute(f"create database {name}")
            async with server.connected(OURS) as inside, server.connected() as beside:
                await cluster.check(connection, wanted)
                for ended in (inside, beside):
                    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                        await ended.execute("select 1")
                    ended.terminate()
            assert await databases(connection) == []

    asyncio.run(go())


def test_databases_that_wait_for_the_next_run_stay(server: Server) -> None:
    async def go() -> None:
        async with server.connected() as connection:
            wanted = await cluster.state(connection)
            for name in (OURS, "pgdbm_fedcba9876_gw1"):
                await connection.execute(f"create database {name}")
            await cluster.check(connection, wanted, [OURS])
            assert await databases(connection) == [OURS]
            await cluster.check(connection, wanted)
            assert await databases(connection) == []

    asyncio.run(go())


def test_a_database_that_cannot_be_dropped_is_told(server: Server) -> None:
    async def go() -> str:
        async with server.connected() as connection:
            wanted = await cluster.state(connection)
            await connection.execute(f"create database {OURS} is_template true")
            try:
                with pytest.raises(ServerFailed) as failed:
                    await cluster.check(connection, wanted)
                return failed.value.why
            finally:
                await connection.execute(f"alter database {OURS} is_template false")
                await connection.execute(f"drop database {OURS}")

    assert asyncio.run(go()) == "the kept server could not be put in order: cannot drop a template database"


def test_a_cluster_that_was_changed_is_told(server: Server) -> None:
    async def go() -> str:
        async with server.connected() as connection:
            with pytest.raises(ServerFailed) as failed:
                await cluster.check(connection, "as it was")
            return failed.value.why

    assert asyncio.run(go()) == "a run has changed more of the kept server than its own databases"


def test_only_databases_of_the_plugin_are_dropped(server: Server) -> None:
    async def go() -> None:
        async with server.connected() as connection:
            with pytest.raises(ValueError, match="'postgres' is not a database of the plugin's"):
                await cluster.drop_database(connection, "postgres")

    asyncio.run(go())


def test_an_ordinary_role_drops_its_database_while_autovacuum_is_at_work_in_it(server: Server) -> None:
    """By force it may not: https://www.postgresql.org/docs/current/sql-dropdatabase.html."""

    async def go() -> None:
        async with server.connected() as admin:
            await admin.execute("create role ordinary login createdb password 'ordinary'")
            await admin.execute("alter system set autovacuum_naptime = 1")
            await admin.execute("select pg_reload_conf()")
            async with server.connected(user="ordinary", password="ordinary") as connection:
                await connection.execute(f"create database {OURS}")
                async with server.connected(OURS, user="ordinary", password="ordinary") as left:
                    await left.execute(SLOWLY_VACUUMED)
                    while not await admin.fetchval(VACUUMING, OURS):
                        await left.execute("update rows set id = id")
                    await cluster.drop_database(connection, OURS)
                assert OURS not in await databases(admin)
            await admin.execute("alter system reset all")
            await admin.execute("select pg_reload_conf()")
            await admin.execute("drop role ordinary")

    asyncio.run(go())


SLOWLY_VACUUMED = """
create table rows (id int) with (
    autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
);
insert into rows select generate_series(1, 50000);
"""
VACUUMING = "select 1 from pg_stat_activity where backend_type = 'autovacuum worker' and datname = $1"


async def databases(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("select datname from pg_database where datname like 'pgdbm%'")
    return [row["datname"] for row in rows]
