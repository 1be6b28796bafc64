"""What is dropped: what this run made and nobody else uses, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from conftest import Project
from databases import connected

from pytest_pgdbm.ground.names import new_run, schema_name
from pytest_pgdbm.schemas.drop import Kept, drop
from pytest_pgdbm.schemas.proof import Proof

OURS = """
create table {s}.t (id serial primary key, name text);
create type {s}.mood as enum ('good', 'bad');
create domain {s}.positive as int check (value > 0);
create function {s}.f(int) returns int language sql immutable as 'select $1';
create function {s}.tr() returns trigger language plpgsql as 'begin return new; end';
create sequence {s}.numbers;
create view {s}.v as select id from {s}.t;
create materialized view {s}.m as select id from {s}.t;
insert into {s}.t (name) values ('ours');
"""

FOREIGN = {
    "view": "create view public.theirs as select * from {s}.t",
    "materialized view": "create materialized view public.theirs as select * from {s}.t",
    "view on our view": "create view public.theirs as select * from {s}.v",
    "column of our enum": "create table public.theirs (id int, mood {s}.mood)",
    "column of our domain": "create table public.theirs (id int, n {s}.positive)",
    "column of our row type": "create table public.theirs (id int, row {s}.t)",
    "array of our enum": "create table public.theirs (id int, moods {s}.mood[])",
    "foreign key": "create table public.theirs (id int, t int references {s}.t)",
    "default from our sequence": "create table public.theirs (id int default nextval('{s}.numbers'))",
    "default from our function": "create table public.theirs (id int default {s}.f(1))",
    "check with our function": "create table public.theirs (id int check ({s}.f(id) > 0))",
    "generated column": "create table public.theirs (id int, g int generated always as ({s}.f(id)) stored)",
    "index with our function": "create table public.theirs (id int); create index on public.theirs ({s}.f(id))",
    "inheriting table": "create table public.theirs () inherits ({s}.t)",
    "trigger": "create table public.theirs (id int);"
    " create trigger tr before insert on public.theirs for each row execute function {s}.tr()",
    "policy": "create table public.theirs (id int); create policy p on public.theirs using ({s}.f(id) > 0)",
    "function": "create function public.theirs({s}.mood) returns int language sql as 'select 1'",
    "domain over ours": "create domain public.theirs as {s}.positive",
    "rule": "create table public.theirs (id int);"
    " create rule r as on insert to public.theirs do also insert into {s}.t (name) values ('x')",
}

Act = Callable[[asyncpg.Connection, str, Proof], Awaitable[None]]


def in_a_schema(url: str, act: Act) -> None:
    """Makes a schema of a run, with its proof, and acts on it."""

    async def go() -> None:
        run = new_run()
        schema = schema_name("users", run=run, worker="gw0", number=1)
        async with connected(url) as connection:
            proof = Proof(run)
            await connection.execute(f"create schema {schema}")
            await connection.execute(
                f"comment on schema {schema} is '{proof.comment('users').replace(chr(39), chr(39) * 2)}'"
            )
            await connection.execute(OURS.format(s=schema))
            await act(connection, schema, proof)

    asyncio.run(go())


async def exists(connection: asyncpg.Connection, schema: str) -> bool:
    return bool(await connection.fetchval("select to_regnamespace($1) is not null", schema))


def test_a_schema_with_proof_goes_with_all_that_is_in_it(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        assert await drop(connection, [schema], proof) == []
        assert not await exists(connection, schema)

    in_a_schema(database_url, act)


@pytest.mark.parametrize("what", FOREIGN)
def test_a_schema_that_something_foreign_uses_stays_and_is_marked(database_url: str, what: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(FOREIGN[what].format(s=schema))
        kept = await drop(connection, [schema], proof)
        assert [each.name for each in kept] == [schema]
        assert "what the plugin did not make depends on it: " in kept[0].why
        assert "theirs" in kept[0].why
        assert await exists(connection, schema)
        said = await connection.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", schema)
        assert said.startswith(proof.comment("users"))
        assert "; kept: what the plugin did not make" in said

    in_a_schema(database_url, act)


@pytest.mark.parametrize(
    "comment",
    [
        None,
        "my own schema",
        Proof("0123456789").comment("users"),
        "pytest-pgdbm schema of run 0123456789, and I like it",
    ],
    ids=["no comment", "a comment", "of another run", "almost"],
)
def test_a_schema_without_this_runs_proof_stays(database_url: str, comment: str | None) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        text = "null" if comment is None else "'" + comment.replace("'", "''") + "'"
        await connection.execute(f"comment on schema {schema} is {text}")
        assert await drop(connection, [schema], proof) == [Kept(schema, "no proof that this run made it")]
        assert await connection.fetchval(f"select name from {schema}.t") == "ours"

    in_a_schema(database_url, act)


def test_a_schema_of_another_name_stays_whatever_its_comment_says(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(f"alter schema {schema} rename to production")
        assert await drop(connection, ["production"], proof) == [Kept("production", "no proof that this run made it")]
        assert await exists(connection, "production")

    in_a_schema(database_url, act)


def test_a_schema_that_is_gone_already_is_no_matter(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(f"drop schema {schema} cascade")
        assert await drop(connection, [schema], proof) == []

    in_a_schema(database_url, act)


def test_of_several_schemas_only_the_used_one_stays(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        other = schema.replace("_1_users", "_2_orders")
        await connection.execute(f"create schema {other}")
        await connection.execute(
            f"comment on schema {other} is '{proof.comment('orders').replace(chr(39), chr(39) * 2)}'"
        )
        await connection.execute(f"create table {other}.o (id int references {schema}.t)")
        await connection.execute(f"create table public.theirs (id int, mood {schema}.mood)")
        kept = await drop(connection, [other, schema], proof)
        assert [each.name for each in kept] == [schema]
        assert not await exists(connection, other)
        assert await connection.fetchval("select count(*) from public.theirs") == 0

    in_a_schema(database_url, act)


def test_a_lock_that_is_not_had_leaves_all_as_it_is(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        async with connected(database_url) as holder, holder.transaction():
            await holder.execute(f"lock table {schema}.t in share mode")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await drop(connection, [schema], proof, seconds=0.1)
            assert await exists(connection, schema)
        assert await drop(connection, [schema], proof) == []

    in_a_schema(database_url, act)


def test_a_test_whose_schema_must_stay_is_told_and_so_is_the_summary(project: Project) -> None:
    result = project.run(
        "-W",
        "default",
        test="""
        async def test_it(users_db):
            await users_db.execute("create view public.theirs as select * from {{tables.users}}")
        """,
    )
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*= pgdbm =*", "schema pgdbm_*_users of test_it.py::test_it was kept: what the plugin did not make*theirs*"]
    )


def test_a_transaction_that_a_test_left_open_is_cut_off_and_named(project: Project) -> None:
    project.write("pytest.ini", (project.path / "pytest.ini").read_text().replace("= function", "= session"))
    result = project.run(
        "-W",
        "default",
        "-o",
        "asyncio_default_test_loop_scope=session",
        test="""
        async def test_leaves(users_db):
            connection = await users_db.pool.acquire()
            await connection.execute("begin")
            await connection.execute(users_db.prepare_query("insert into {{tables.users}} (email) values ('a')"))

        async def test_next(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0
        """,
    )
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*PgdbmLeakWarning: test_it.py::test_leaves ended*last query*insert into*"])
