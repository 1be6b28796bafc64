"""A fingerprint notices whatever leaves a set of schemas otherwise than it was, and nothing else."""

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import pytest
from keeper.runs import a_job, a_run
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager
from schemas import statements

from pytest_pgdbm.schemas.fingerprint import still, take
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer
from pytest_pgdbm.servers.installations import find_installations

DATABASE = "fingerprinted"


@dataclass(frozen=True)
class Ground:
    """A database with the set of `statements` in it, on a server, and the role that made the set
    and looks at it.
    """

    where: dict
    version: int
    has_citext: bool
    role: str

    @property
    def is_superuser(self):
        return self.role == "boss"

    @asynccontextmanager
    async def connected(self, role=None, database=DATABASE):
        user = role or self.role
        connection = await asyncpg.connect(**self.where, user=user, database=database, max_cacheable_statement_size=0)
        try:
            await connection.execute(f"{statements.PATH}; set client_min_messages = error")
            yield connection
        finally:
            await connection.close()

    def of_table(self, table):
        return [
            statement
            for statement in table
            if statement.since <= self.version and (self.has_citext or "citext" not in statement.sql)
        ]


def installations():
    """The newest and the oldest version here, or the one that the tests are run for; with EVERY_POSTGRESQL in the
    environment all of them.
    """
    majors = {}
    for installation in find_installations(os.environ.get("PGDBM_SERVER_BIN")):
        majors.setdefault(installation.major, installation)
    chosen = majors if "EVERY_POSTGRESQL" in os.environ else {max(majors), min(majors)}
    return [majors[major] for major in sorted(chosen)]


@pytest.fixture(scope="module", params=installations(), ids=lambda one: f"PostgreSQL {one.major}")
def server(request, tmp_path_factory):
    run = a_run(tmp_path_factory.mktemp("server"))
    run.folder.mkdir(mode=0o700)
    new_record(run.folder)
    job = a_job(run, installation=request.param)
    embedded = EmbeddedServer(job)
    started = embedded.start()
    where = {"host": started.socket_dir, "port": started.port, "password": job.admin.password}
    ground = Ground(where, request.param.major, "citext" in request.param.extensions(), "boss")
    asyncio.run(make_roles(ground))
    yield ground
    embedded.stop()


async def make_roles(ground):
    password = f"login password '{ground.where['password']}'"
    async with ground.connected("boss", "postgres") as connection:
        await connection.execute(
            f"create role other {password}; create role owner {password} in role other;create role stranger {password}"
        )


@pytest.fixture(scope="module", params=["boss", "owner"], ids=["superuser", "ordinary role"])
def ground(server, request):
    ground = Ground(server.where, server.version, server.has_citext, request.param)
    asyncio.run(make_database(ground))
    return ground


async def make_database(ground):
    async with ground.connected("boss", "postgres") as boss:
        await boss.execute(f"drop database if exists {DATABASE}")
        await boss.execute(f"create database {DATABASE} owner {ground.role}")
    async with ground.connected() as connection, ground.connected("boss") as boss:
        for statement in ground.of_table(statements.SETUP):
            await (boss if statement.superuser else connection).execute(statement.sql)
        await connection.execute(statements.SMALL)


@asynccontextmanager
async def undone(connection):
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def verdicts(ground, table, *, schemas=("s", "t")):
    """What is said of each statement of the table, in a transaction that is undone; None if it was
    refused.
    """
    said = {}
    async with ground.connected() as connection:
        fingerprint = await take(connection, schemas)
        for statement in ground.of_table(table):
            if statement.alone:
                continue
            async with undone(connection):
                try:
                    await connection.execute(statement.sql)
                    said[statement] = await still(connection, fingerprint)
                except asyncpg.InsufficientPrivilegeError:
                    said[statement] = None
            quick_value = await connection.fetchval(f"select {fingerprint.quick}")
            assert quick_value == fingerprint.quick_value, f"undone: {statement.sql}"
    return said


def sql_of(said, condition):
    return [statement.sql for statement, verdict in said.items() if condition(statement, verdict)]


def refusals_are_as_said(ground, said):
    refused = sql_of(said, lambda _, verdict: verdict is None)
    reserved = sql_of(said, lambda statement, _: statement.superuser)
    return refused == ([] if ground.is_superuser else reserved)


def test_every_statement_that_changes_the_set_is_noticed_and_leaves_no_trace_when_it_is_undone(ground):
    said = asyncio.run(verdicts(ground, statements.CHANGES))
    assert sql_of(said, lambda _, verdict: verdict is not None and verdict.same) == []
    assert refusals_are_as_said(ground, said)


def test_the_first_object_of_each_kind_is_noticed(ground):
    said = asyncio.run(verdicts(ground, statements.FIRST, schemas=["small"]))
    assert sql_of(said, lambda _, verdict: verdict is not None and verdict.same) == []
    assert refusals_are_as_said(ground, said)


def test_what_lies_elsewhere_is_not_the_sets(ground):
    said = asyncio.run(verdicts(ground, statements.ELSEWHERE))
    assert sql_of(said, lambda _, verdict: verdict is not None and not verdict.same) == []
    assert refusals_are_as_said(ground, said)


def test_in_a_fingerprint_of_the_database_it_is_noticed(ground):
    said = asyncio.run(verdicts(ground, statements.ELSEWHERE, schemas=None))
    assert sql_of(said, lambda _, verdict: verdict is not None and verdict.same) == []


@pytest.mark.parametrize("schemas", [("s", "t"), None], ids=["the set", "the database"])
def test_what_lies_in_no_database_is_not_noticed(ground, schemas):
    said = asyncio.run(verdicts(ground, statements.BEYOND, schemas=schemas))
    assert sql_of(said, lambda _, verdict: verdict is not None and not verdict.same) == []


async def keeps_watch(connection, fingerprint):
    """It finds nothing now, by the quick look alone, and a change when there is one, by both."""
    assert (await still(connection, fingerprint)).fingerprint is fingerprint
    async with undone(connection):
        await connection.execute("alter index ch_v set (fillfactor = 50)")
        assert await connection.fetchval(f"select {fingerprint.quick}") != fingerprint.quick_value
        assert await connection.fetchval(f"select {fingerprint.meaning}") != fingerprint.meaning_value


async def harmless(ground):
    """Where it was not "the same" of statements that are committed, one after the other."""
    wrong = {}
    async with ground.connected() as connection:
        first = kept = [await take(connection, ["s", "t"]), await take(connection, None)]
        for statement in ground.of_table(statements.HARMLESS):
            await connection.execute(statement.sql)
            verdicts = [await still(connection, fingerprint) for fingerprint in kept]
            wrong.update((statement.sql, verdict.changes) for verdict in verdicts if not verdict.same)
            for verdict, fingerprint in zip(verdicts, kept, strict=True):
                if verdict.fingerprint is not fingerprint:
                    await keeps_watch(connection, verdict.fingerprint)
            kept = [verdict.fingerprint for verdict in verdicts]
    assert [sorted(each.lines) for each in kept] == [sorted(each.lines) for each in first]
    return wrong


def test_harmless_statements_change_nothing_and_the_next_change_is_still_seen(ground):
    assert len(statements.HARMLESS) > 80
    assert asyncio.run(harmless(ground)) == {}


def test_migrations_that_pgdbm_finds_applied_leave_no_trace(ground, tmp_path):
    table = "{{tables.users}}"
    (tmp_path / "001_users.sql").write_text(f"create table if not exists {table} (id serial primary key, v text);")
    (tmp_path / "002_index.sql").write_text(f"create index if not exists users_v on {table} (v);")

    async def go():
        async with a_copy(ground) as connection:
            await connection.execute("create schema again")
            pool = await asyncpg.create_pool(**ground.where, user=ground.role, database="copied", min_size=1)
            runner = AsyncMigrationManager(AsyncDatabaseManager(pool=pool, schema="again"), str(tmp_path))
            await runner.apply_pending_migrations()
            fingerprint = await take(connection, ["again"])
            await runner.apply_pending_migrations()
            for file in sorted(tmp_path.iterdir()):
                await connection.execute(file.read_text().replace(table, "again.users"))
            await pool.close()
            return (await still(connection, fingerprint)).fingerprint is fingerprint

    assert asyncio.run(go())


async def alone(ground):
    """What was said of statements that cannot run in a transaction, each in a copy of the database."""
    said = {}
    for statement in ground.of_table(statements.CHANGES):
        if statement.alone:
            async with a_copy(ground) as connection:
                fingerprint = await take(connection, ["s", "t"])
                for part in statement.sql.split("; "):
                    await connection.execute(part)
                said[statement] = await still(connection, fingerprint)
    return said


@asynccontextmanager
async def a_copy(ground):
    async with ground.connected("boss", "postgres") as boss:
        await boss.execute(f"create database copied template {DATABASE} owner {ground.role}")
        try:
            async with ground.connected(database="copied") as connection:
                yield connection
        finally:
            await boss.execute("drop database copied with (force)")


def test_statements_that_cannot_run_in_a_transaction_are_noticed_too(ground):
    said = asyncio.run(alone(ground))
    assert len(said) == 4
    assert sql_of(said, lambda _, verdict: verdict.same) == []


@asynccontextmanager
async def prepared(ground, setup, *schemas):
    """A connection to the database with a fingerprint of the schemas, after `setup`; undone
    afterwards.
    """
    async with ground.connected() as connection, undone(connection):
        await connection.execute(setup)
        yield connection, await take(connection, schemas)


SAID = {
    "alter table p alter a set default 2": "changed: default of s.p.a",
    "alter table p add zz int default 5": "new: column s.p.zz, default of s.p.zz; changed: relation s.p",
    "alter table p rename b to bb": "new: column s.p.bb; gone: column s.p.b",
    "alter table p drop b": "new: column s.p.(dropped); gone: column s.p.b",
    "alter table p disable trigger tr": "changed: trigger s.p.tr",
    "alter table ch drop constraint fk": "gone: constraint s.ch.fk",
    "alter table ch rename constraint fk to fkk": "new: constraint s.ch.fkk; gone: constraint s.ch.fk",
    "create table t.n(id int primary key, v text)": "new: relation t.n, relation t.n_pkey",
    "create type t.n as enum ('a')": "new: type t.n, value n.a",
    "create view public.n as select id from p": "new: rule public.n._RETURN",
    "create or replace function f(int) returns int language sql as 'select 2'": "changed: function s.f(integer)",
    "drop table t.far cascade": "gone: relation t.far, relation t.far_pkey, relation t.far_view",
    "grant usage on schema s to public": "changed: schema s",
    "comment on column p.a is 'x'": "new: comment on column a of table p",
    "alter function f(int) depends on extension plpgsql": "new: tie to an extension of function f(integer)",
    "alter sequence sq owned by p.a": "changed: sequence s.sq",
    "create view t.a as select 1 as a, 2 as b, 3 as c; create index i on p(a); create index j on p(a);"
    " create index k on p(a); create index l on p(a)": "new: relation s.i, relation s.j, relation s.k, relation s.l"
    " and 1 more",
}


def test_it_says_what_changed(ground):
    async def go():
        said = {}
        async with ground.connected() as connection:
            fingerprint = await take(connection, ["s", "t"])
            for statement in SAID:
                async with undone(connection):
                    await connection.execute(statement)
                    said[statement] = (await still(connection, fingerprint)).changes
        return said

    assert asyncio.run(go()) == SAID


def test_triggers_of_foreign_keys_are_named_when_nothing_else_changed(ground):
    async def go():
        async with ground.connected("boss") as connection:
            fingerprint = await take(connection, ["s", "t"])
            async with undone(connection):
                await connection.execute("alter table t.far disable trigger all")
                return (await still(connection, fingerprint)).changes

    assert asyncio.run(go()) == "changed: triggers of foreign keys"


def test_what_is_not_committed_is_not_seen_and_what_an_older_transaction_commits_is(ground):
    async def go():
        async with a_copy(ground) as connection, ground.connected(database="copied") as older:
            transaction = older.transaction()
            await transaction.start()
            await older.fetchval("select pg_current_xact_id()")
            await connection.execute("create or replace function s.f(int) returns int language sql as 'select 5'")
            fingerprint = await take(connection, ["s", "t"])
            await older.execute("alter function s.f(int) stable")
            before = await still(connection, fingerprint)
            await transaction.commit()
            return before.same, (await still(connection, fingerprint)).changes

    assert asyncio.run(go()) == (True, "changed: function s.f(integer)")


def test_it_holds_in_a_copy_of_the_database(ground):
    async def go():
        async with ground.connected() as connection:
            fingerprint = await take(connection, ["s", "t"])
        async with a_copy(ground) as connection:
            await keeps_watch(connection, fingerprint)

    asyncio.run(go())


def test_sets_that_were_built_at_the_same_time_are_told_apart(ground):
    async def go():
        setup = "create schema one; create schema two;"
        for number in range(5):
            setup += f"create table one.t{number}(id serial primary key); create type one.e{number} as enum ('a');"
            setup += f"create table two.t{number}(id serial primary key); create type two.e{number} as enum ('a');"
        async with prepared(ground, setup, "one") as (connection, fingerprint):
            await connection.execute("alter table two.t2 alter id set default 5; comment on type two.e1 is 'x'")
            quiet = await still(connection, fingerprint)
            await connection.execute("alter table one.t2 alter id set default 5")
            return quiet.fingerprint is fingerprint, (await still(connection, fingerprint)).changes

    assert asyncio.run(go()) == (True, "changed: default of one.t2.id")


@pytest.mark.parametrize(
    "statement",
    [
        "alter index small.i depends on extension plpgsql",
        "alter trigger tr on small.only depends on extension plpgsql",
        "alter function small.f() depends on extension plpgsql",
    ],
)
def test_a_tie_to_an_extension_is_noticed_where_these_have_many(ground, statement):
    async def go():
        setup = "create schema other; do $$ begin for i in 1..50 loop execute format("
        setup += "'create function other.f%s() returns int language sql as ''select 1'';"
        setup += "alter function other.f%s() depends on extension plpgsql', i, i); end loop; end $$;"
        setup += "create index i on small.only(id);"
        setup += "create function small.f() returns trigger language plpgsql as 'begin end';"
        setup += "create trigger tr before insert on small.only for each row execute function small.f()"
        async with prepared(ground, setup, "small") as (connection, fingerprint):
            await connection.execute(statement)
            return (await still(connection, fingerprint)).same

    assert not asyncio.run(go())


def test_a_role_without_any_privilege_can_take_one(ground):
    async def go():
        async with ground.connected("stranger") as stranger, ground.connected() as connection:
            fingerprint = await take(connection, ["s", "t"])
            assert (await still(stranger, fingerprint)).fingerprint is fingerprint
            assert (await take(stranger, ["s", "t"])).meaning_value == fingerprint.meaning_value
            await take(stranger, None)

    asyncio.run(go())


def test_a_schema_that_is_not_there_is_an_error(ground):
    async def go():
        async with ground.connected() as connection:
            await take(connection, ["s", "nowhere", "here_neither"])

    with pytest.raises(LookupError, match=r"^no such schema: here_neither, nowhere$"):
        asyncio.run(go())


def test_its_sql_stands_in_a_function_whatever_that_calls_its_variables(ground):
    async def go():
        async with ground.connected() as connection, undone(connection):
            fingerprint = await take(connection, ["s", "t"])
            names = ["oid", "xmin", "age", "row_version", "classid", "objid", "label", "hash", "oids", "catalog", "id"]
            variables = " ".join(f"{name} text;" for name in names)
            body = f"begin return ({fingerprint.quick}) || '!' || ({fingerprint.meaning}); end"
            await connection.execute(
                "create function pg_temp.look() returns text language plpgsql as"
                f" $look$ declare {variables} {body} $look$"
            )
            assert await connection.fetchval("select pg_temp.look()") == (
                f"{fingerprint.quick_value}!{fingerprint.meaning_value}"
            )

    asyncio.run(go())


def test_the_quick_look_reads_no_catalog_from_end_to_end(ground):
    async def go():
        many = "create schema crowd; do $$ begin for i in 1..200 loop execute format("
        many += "'create table crowd.t%s(id serial primary key, v text check (v > %L))', i, ''); end loop; end $$"
        async with prepared(ground, many, "s", "t") as (connection, fingerprint):
            plan = await connection.fetch(f"explain select {fingerprint.quick}")
        return "\n".join(line for (line,) in plan)

    plan = asyncio.run(go())
    large = ("attribute", "class", "constraint", "depend", "description", "index", "type")
    assert [name for name in large if f"Seq Scan on pg_{name}" in plan] == []
    assert [name for name in large if f"on pg_{name}" in plan] == [*large]
