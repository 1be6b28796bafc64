"""What is dropped: what this run made and nobody else uses, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from conftest import Project
from databases import connected, waits_or_is_done

from pytest_pgdbm.ground.names import new_run, schema_name
from pytest_pgdbm.schemas.drop import Kept, drop, thin_out
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
create table {s}.parted (id int, own text) partition by range (id);
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

# What somebody makes with rows of their own, and what is to be seen of it.
WITH_ROWS = {
    "inheriting table": (
        "create table public.theirs (own text) inherits ({s}.t); insert into public.theirs values (1, 'a', 'precious')",
        "select own from public.theirs",
    ),
    "partition": (
        "create table public.theirs (id int, own text); insert into public.theirs values (1, 'precious');"
        "alter table {s}.parted attach partition public.theirs for values from (1) to (2)",
        "select own from public.theirs",
    ),
    "view": ("create view public.theirs as select 'precious' as own from {s}.t", "select own from public.theirs"),
    "view on our view": (
        "create view public.theirs as select 'precious' as own from {s}.v",
        "select own from public.theirs",
    ),
    "foreign key": (
        "create table public.theirs (own text, t int references {s}.t on delete cascade);"
        "insert into public.theirs values ('precious', 1)",
        "select own from public.theirs join pg_constraint on conrelid = 'public.theirs'::regclass and contype = 'f'",
    ),
    "column of our enum": (
        "create table public.theirs (own text, mood {s}.mood); insert into public.theirs values ('precious', 'good')",
        "select own from public.theirs where mood = 'good'",
    ),
    "column of our row type": (
        "create table public.theirs (own {s}.t); insert into public.theirs values ((1, 'precious'))",
        "select (own).name from public.theirs",
    ),
    "default from our sequence": (
        "create table public.theirs (own text, id int default nextval('{s}.numbers'));"
        "insert into public.theirs values ('precious', 1)",
        "select own from public.theirs join pg_attrdef on adrelid = 'public.theirs'::regclass",
    ),
    "default from our function": (
        "create table public.theirs (own text, id int default {s}.f(1)); insert into public.theirs values ('precious')",
        "select own from public.theirs join pg_attrdef on adrelid = 'public.theirs'::regclass",
    ),
    "trigger": (
        "create table public.theirs (own text); create trigger tr before insert on public.theirs"
        " for each row execute function {s}.tr(); insert into public.theirs values ('precious')",
        "select own from public.theirs join pg_trigger on tgrelid = 'public.theirs'::regclass",
    ),
}
LOCK_OUR_TABLES = ("inheriting table", "partition", "view", "view on our view", "foreign key")

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


def test_a_schema_goes_that_its_owner_may_not_use(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(f"revoke usage on schema {schema} from current_user")
        assert await drop(connection, [schema], proof) == []
        assert not await exists(connection, schema)

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


@pytest.mark.parametrize("what", WITH_ROWS)
def test_what_is_not_committed_yet_when_the_drop_begins_stays(database_url: str, what: str) -> None:
    make, look = WITH_ROWS[what]

    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        async with connected(database_url) as other:
            await other.execute("begin;" + make.format(s=schema))
            dropping = asyncio.ensure_future(drop(connection, [schema], proof))
            gone = await waits_or_is_done(dropping, other)
            await other.execute("commit")
            kept = await dropping
            if gone:
                # The server knows of no lock on what they refer to, and nobody can see that they do.
                assert what not in LOCK_OUR_TABLES
                assert kept == []
                assert await other.fetchval("select to_regclass('public.theirs') is not null")
            else:
                assert [each.name for each in kept] == [schema]
                assert "theirs" in kept[0].why
                assert [tuple(row) for row in await other.fetch(look)] == [("precious",)]

    in_a_schema(database_url, act)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("held", ["t", "numbers"])
@pytest.mark.parametrize("what", WITH_ROWS)
def test_what_is_committed_while_the_drop_waits_for_somebody_else_stays(
    database_url: str, what: str, held: str, isolation: str
) -> None:
    make, look = WITH_ROWS[what]

    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(f"set default_transaction_isolation = '{isolation}'")
        async with connected(database_url) as other, connected(database_url) as holder:
            await holder.execute(f"begin; select from {schema}.{held}")
            await other.execute("begin;" + make.format(s=schema))
            dropping = asyncio.ensure_future(drop(connection, [schema], proof))
            assert not await waits_or_is_done(dropping, other)
            await other.execute("commit")
            await holder.execute("commit")
            assert [each.name for each in await dropping] == [schema]
            assert [tuple(row) for row in await other.fetch(look)] == [("precious",)]

    in_a_schema(database_url, act)


def test_a_table_that_is_moved_elsewhere_while_the_drop_waits_stays(database_url: str) -> None:
    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        await connection.execute(f"create table {schema}.theirs () inherits ({schema}.t)")
        await connection.execute(f"insert into {schema}.theirs values (7, 'precious')")
        async with connected(database_url) as other:
            await other.execute(f"begin; alter table {schema}.theirs set schema public")
            dropping = asyncio.ensure_future(drop(connection, [schema], proof))
            assert not await waits_or_is_done(dropping, other)
            await other.execute("commit")
            assert [each.name for each in await dropping] == [schema]
            assert await other.fetchval("select name from public.theirs") == "precious"

    in_a_schema(database_url, act)


@pytest.mark.parametrize("what", LOCK_OUR_TABLES)
def test_thinning_out_takes_nothing_along_that_is_committed_meanwhile(database_url: str, what: str) -> None:
    make, look = WITH_ROWS[what]

    async def act(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
        async with connected(database_url) as other:
            await other.execute("begin;" + make.format(s=schema))
            thinning = asyncio.ensure_future(thin_out(connection, schema, proof, seconds=5))
            assert not await waits_or_is_done(thinning, other)
            await other.execute("commit")
            with pytest.raises(asyncpg.SerializationError, match="what depends on it has changed meanwhile"):
                await thinning
            assert await other.fetchval(look) == "precious"
            assert await other.fetchval(f"select name from {schema}.t where id = 1") == "ours"
            await thin_out(connection, schema, proof, seconds=5)
            assert await other.fetchval(look) == "precious"

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
