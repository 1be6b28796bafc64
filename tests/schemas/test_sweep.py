"""What dead runs have left goes, what living ones have stays, and so does all that is not proved to be the plugin's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from databases import connected, waits_or_is_done
from workshop import Workshop, interrupt_drop

from pytest_pgdbm.connections import registration
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.registration import Registration
from pytest_pgdbm.ground import locks, names
from pytest_pgdbm.ground.names import new_run, quote_ident
from pytest_pgdbm.schemas.databases import Databases
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.proof import Proof, database_mark
from pytest_pgdbm.schemas.survey import survey
from pytest_pgdbm.schemas.sweep import Swept, sweep


async def leave(connection: asyncpg.Connection, run: str, *services: str, worker: str = "main") -> list[str]:
    """Schemas as a process of this run makes them, each with a table that refers to the one before."""
    made: list[str] = []
    for number, service in enumerate(services, 1):
        schema = names.schema_name(service, run=run, worker=worker, number=number)
        await connection.execute(f"create schema {schema}")
        await connection.execute(f"comment on schema {schema} is $c${Proof(run).comment(service)}$c$")
        refers = f", other int references {made[-1]}.t" if made else ""
        await connection.execute(f"create table {schema}.t (id int primary key{refers})")
        made.append(schema)
    return made


async def leave_databases(workshop: Workshop, run: str, count: int) -> list[str]:
    """Databases as a process of this run makes them."""
    endpoint = await workshop.by_url(workshop.url)
    admin = Admin(endpoint, endpoint.database, application_name="it", path=None)
    made = [names.database_name(run=run, worker="main", number=number) for number in range(1, count + 1)]
    for name in made:
        await Databases(admin, endpoint, Proof(run)).create(name, ["users"])
    await admin.close()
    return made


@asynccontextmanager
async def alive(url: str, run: str, worker: str = "main") -> AsyncIterator[asyncpg.Connection]:
    """A process of the run, as its connection shows it."""
    async with connected(url) as connection:
        await Registration(run, worker).enter(connection)
        yield connection


async def swept(workshop: Workshop, **own: str) -> Swept:
    async with connected(workshop.url) as connection:
        return await sweep(connection, **own)


def test_what_a_dead_run_has_left_goes_whatever_depends_on_what(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            left = await leave(connection, new_run(), "users", "orders", "items")
            await connection.execute(f"create view {left[0]}.v as select * from {left[2]}.t")
        found = await swept(workshop)
        assert [each.name for each in found.dropped] == left
        assert (found.kept, found.alive) == ([], set())
        assert await workshop.schemas() == []

    asyncio.run(go())


@pytest.mark.parametrize("tables", [1, 120])
def test_what_somebody_begins_to_use_while_it_is_swept_stays(workshop: Workshop, tables: int) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection, connected(workshop.url) as other:
            left = await leave(connection, new_run(), "users")
            for number in range(1, tables):  # more than a hundred are dropped a few at a time
                await connection.execute(f"create table {left[0]}.t{number} (id int)")
            last = "t" if tables == 1 else f"t{tables - 1}"
            await other.execute(
                f"begin; create table public.theirs (own text) inherits ({left[0]}.{last});"
                "insert into public.theirs values (1, 'precious')"
            )
            sweeping = asyncio.ensure_future(sweep(connection))
            assert not await waits_or_is_done(sweeping, other)
            await other.execute("commit")
            found = await sweeping
            assert (found.dropped, [each.name for each in found.kept]) == ([], left)
            assert await other.fetchval("select own from public.theirs") == "precious"

    asyncio.run(go())


def test_what_a_living_run_has_stays_and_goes_once_its_last_process_has_died(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        async with alive(workshop.url, run, "gw0") as connection, alive(workshop.url, run, "gw1"):
            left = await leave(connection, run, "users")
            await connection.close()
            found = await swept(workshop)
            assert (found.dropped, found.alive) == ([], {run})
        found = await swept(workshop)
        assert [each.name for each in found.dropped] == left

    asyncio.run(go())


RELEASES = "select pg_advisory_unlock_all(); select pg_advisory_lock(4711); create table {{tables.t}} (id int);"


def test_a_run_whose_migration_releases_all_locks_is_let_be_by_sweeps_and_by_the_doctor(workshop: Workshop) -> None:
    async def go() -> None:
        services = {
            "users": workshop.service("users", "create table {{tables.users}} (id int)"),
            "rude": workshop.service("rude", RELEASES),
        }
        async with connected(workshop.url) as other, workshop.home() as home:
            leased = await home.build(workshop.ask("users", services).plan, ())
            await other.execute("select pg_advisory_lock(4711)")
            building = asyncio.ensure_future(home.build(workshop.ask("rude", services).plan, ()))
            assert not await waits_or_is_done(building, other)
            held = "select from pg_locks where locktype = 'advisory' and classid::bigint << 32 | objid::bigint = $1"
            assert await other.fetch(held, locks.of_run(workshop.run.id)) == []
            found = await swept(workshop)
            assert (found.dropped, found.alive) == ([], {workshop.run.id})
            assert {seen.state for seen in await survey(other) if seen.kind == "schema"} == {"alive"}
            await other.execute("select pg_advisory_unlock(4711)")
            assert await home.drop([leased, await building]) == ([], [])

    asyncio.run(go())


def test_of_its_own_run_a_process_sweeps_what_dead_processes_have_left(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        async with alive(workshop.url, run, "gw0") as connection, alive(workshop.url, run, "gw1"):
            mine = await leave(connection, run, "users", worker="gw0")
            theirs = await leave(connection, run, "users", worker="gw1")
            dead = await leave(connection, run, "users", "orders", worker="gw2")
            found = await swept(workshop, run=run, worker="gw0")
            assert [each.name for each in found.dropped] == dead
            assert await workshop.schemas() == sorted(mine + theirs)

    asyncio.run(go())


def test_a_process_that_comes_back_waits_for_the_sweeper(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        async with connected(workshop.url) as sweeper:
            await sweeper.fetchval("select pg_advisory_lock($1)", locks.of_run(run))
            admin = Admin(await workshop.by_url(workshop.url), workshop.database, application_name="it", path=None)
            late = Admin(
                await workshop.by_url(workshop.url),
                workshop.database,
                application_name="late",
                path=None,
                registration=Registration(run, "main"),
            )
            async with admin.administrator() as watching:
                entering = asyncio.ensure_future(_use(late))
                waiting = "select 1 from pg_stat_activity where application_name = 'late' and wait_event = 'advisory'"
                while not await watching.fetchval(waiting):
                    await asyncio.sleep(0.01)
                assert not entering.done()
                await sweeper.execute("select pg_advisory_unlock_all()")
                await entering
            await admin.close()
            await late.close()

    asyncio.run(go())


async def _use(admin: Admin) -> None:
    async with admin.administrator() as connection:
        assert await connection.fetchval("select 1") == 1


def test_two_sweepers_do_not_get_in_each_others_way(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as first, connected(workshop.url) as second:
            left = await leave(first, new_run(), *[f"s{number}" for number in range(20)])
            one, other = await asyncio.gather(sweep(first), sweep(second))
            dropped = [each.name for each in one.dropped + other.dropped]
            assert sorted(dropped) == sorted(left)

    asyncio.run(go())


def test_what_the_plugin_did_not_make_keeps_a_schema_and_is_told_once(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            left = await leave(connection, new_run(), "users", "orders")
            await connection.execute(f"create view public.theirs as select * from {left[0]}.t")
            why = "what the plugin did not make depends on it: view public.theirs"
            for _ in range(2):
                found = await swept(workshop)
                assert found.kept == [Kept(left[0], why)]
                said = await connection.fetchval("select obj_description($1::regnamespace, 'pg_namespace')", left[0])
                assert said.count("; kept: ") == 1
            assert await workshop.schemas() == left[:1]
            assert await connection.fetch("select * from public.theirs") == []

    asyncio.run(go())


def test_who_works_in_what_a_dead_run_has_left_is_not_waited_for_and_not_ended(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection, connected(workshop.url) as holder:
            left = await leave(connection, new_run(), "users")
            await holder.execute(f"begin; select * from {left[0]}.t")
            found = await swept(workshop)
            assert [each.name for each in found.kept] == left
            assert "lock timeout" in found.kept[0].why
            assert await holder.fetchval("select 1") == 1
            await holder.execute("rollback")
            assert [each.name for each in (await swept(workshop)).dropped] == left

    asyncio.run(go())


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("pgdbm_0123456789_main_1_users", None),
        ("pgdbm_0123456789_main_1_users", "ours"),
        ("pgdbm_0123456789_main_1_users", "pytest-pgdbm schema of run aaaaaaaaaa, process 1 on host, service 'users'"),
        ("pgdbm_0123456789_main_1_users", "pytest-pgdbm database of run 0123456789, process 1 on host, services 'u'"),
        ("pgdbm_0123456789_main_1_users", "pytest-pgdbm 2: schema of run 0123456789"),
        ("pgdbm_0123456789_main_1_", "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"),
        ("pgdbm_0123456789_main_users", "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"),
        ("PGDBM_0123456789_main_1_users", "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"),
        ("pgdbm_012345678_main_1_users", "pytest-pgdbm schema of run 012345678, process 1 on host, service 'users'"),
        ("pgdbm_0123456789_main_1_users ", "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"),
        ("users", "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"),
    ],
)
def test_without_proof_a_schema_stays(workshop: Workshop, name: str, comment: str | None) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute(f"create schema {quote_ident(name)}")
            if comment is not None:
                await connection.execute(f"comment on schema {quote_ident(name)} is $c${comment}$c$")
            found = await sweep(connection)
            assert (found.dropped, found.kept, found.alive) == ([], [], set())
            assert await connection.fetchval("select count(*) from pg_namespace where nspname = $1", name) == 1

    asyncio.run(go())


def test_a_dead_runs_databases_go_and_those_made_by_way_of_another_database_stay(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        made = await leave_databases(workshop, run, 3)
        try:
            async with connected(workshop.url) as connection:
                # As if the process had died in the middle of making it, and as if it had come by another way.
                await connection.execute(f"comment on database {made[1]} is null")
                await connection.execute(f"alter database {made[2]} connection limit {database_mark(1)}")
            found = await swept(workshop)
            assert [each.name for each in found.dropped] == made[:2]
            assert await _databases(workshop, run) == made[2:]
        finally:
            async with connected(workshop.url) as connection:
                await connection.execute(f"drop database if exists {made[2]}")

    asyncio.run(go())


def test_a_database_whose_drop_was_interrupted_goes(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        made = await leave_databases(workshop, run, 1)
        await interrupt_drop(workshop, made[0])
        async with connected(workshop.url) as connection:
            assert [(seen.name, seen.state, seen.why) for seen in await survey(connection) if seen.run] == [
                (made[0], "dead", "")
            ]
        found = await swept(workshop)
        assert [each.name for each in found.dropped] == made
        assert await _databases(workshop, run) == []

    asyncio.run(go())


async def _databases(workshop: Workshop, run: str) -> list[str]:
    async with connected(workshop.url) as connection:
        rows = await connection.fetch("select datname from pg_database where datname like $1", f"pgdbm_{run}_%")
        return [row["datname"] for row in rows]


def test_a_database_that_somebody_is_in_stays_until_he_has_left(workshop: Workshop) -> None:
    async def go() -> None:
        run = new_run()
        (name,) = await leave_databases(workshop, run, 1)
        async with connected(workshop.url.rpartition("/")[0] + "/" + name) as inside:
            found = await swept(workshop)
            assert [each.name for each in found.kept] == [name]
            assert "is being accessed by other users" in found.kept[0].why
            assert await inside.fetchval("select 1") == 1
        found = await swept(workshop)
        assert [each.name for each in found.dropped] == [name]

    asyncio.run(go())


def test_a_session_that_the_network_took_away_does_not_hinder_the_next(workshop: Workshop) -> None:
    async def go() -> None:
        admin = Admin(
            await workshop.by_url(workshop.url),
            workshop.database,
            application_name="it",
            path=None,
            registration=Registration(new_run(), "main"),
        )
        async with admin.administrator() as connection:
            pid = connection.get_server_pid()
            # The server hears nothing of it: the socket stays open in a duplicate.
            transport = connection._transport
            duplicate = transport.get_extra_info("socket").dup()
            transport.abort()
        while not admin.losses:
            await asyncio.sleep(0)
        await _use(admin)
        assert admin.losses == 1
        async with connected(workshop.url) as other:
            assert await other.fetchval("select count(*) from pg_stat_activity where pid = $1", pid) == 0
        duplicate.close()
        await admin.close()

    asyncio.run(go())


def test_who_holds_a_processs_locks_for_too_long_is_told(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "SECONDS_TO_REGISTER", 0.05)

    async def go() -> None:
        run = new_run()
        async with alive(workshop.url, run), connected(workshop.url) as connection:
            with pytest.raises(asyncpg.LockNotAvailableError) as caught:
                await Registration(run, "main").enter(connection)
        assert str(caught.value).startswith("for 0.05 seconds another session has held the locks")

    asyncio.run(go())
