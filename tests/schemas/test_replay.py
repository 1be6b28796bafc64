"""A set that is replayed is the set that pgdbm's runner makes, and is had with less."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pg_dump
import pytest
from databases import connected
from hypothesis import given, reject
from hypothesis import strategies as st
from pgdbm.errors import SchemaError
from schemas import copies, statements
from workshop import Workshop

from pytest_pgdbm import BuildError, Database, SeedError, Service
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.recording import Recorder, Template
from pytest_pgdbm.schemas.watched import Builder, Watched

READS_WHAT_IS_APPLIED = "SELECT filename, checksum"
"""As only pgdbm's runner does."""


@asynccontextmanager
async def listening(home: Home) -> AsyncIterator[list[str]]:
    """What the home's connection sends meanwhile."""
    sent: list[str] = []
    async with home._site.admin.administrator() as connection:
        pass
    hear = lambda query: sent.append(query.query)  # noqa: E731
    connection.add_query_logger(hear)
    try:
        yield sent
    finally:
        connection.remove_query_logger(hear)


async def build(home: Home, plan: Plan) -> tuple[BuiltSet, bool]:
    """A set, and whether it was replayed."""
    async with listening(home) as sent:
        built = await home.build(plan, ())
    return built, not any(READS_WHAT_IS_APPLIED in each for each in sent)


async def same_when_replayed(
    workshop: Workshop, services: Mapping[str, Service], *, replayed: bool = True, **options: Any
) -> tuple[BuiltSet, BuiltSet]:
    """Builds the set of all these services by the runner twice and then once more, and compares.

    Returns the first and the last.
    """
    plan = workshop.ask(list(services)[-1], services).plan
    assert set(plan.names) == set(services)
    async with workshop.home(**options) as one, workshop.home(**options, worker="gw1") as two:
        sets = [await build(one, plan), await build(two, plan), await build(one, plan)]
        assert [quick for _, quick in sets] == [False, False, replayed]
        dumps = [await pg_dump.dump(workshop.own, workshop.database, built.schemas) for built, _ in sets]
        assert copies.differences(*dumps) == []
    await no_superuser_left(workshop)
    return sets[0][0], sets[-1][0]


async def no_superuser_left(workshop: Workshop) -> None:
    """The backend of a `pg_dump` ends later than that does, and an ordinary role cannot drop the database under it."""
    async with connected(workshop.url) as connection:
        while await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'pg_dump' and datname = current_database()"
        ):
            await asyncio.sleep(0.01)


async def row(workshop: Workshop, built: BuiltSet, sql: str) -> asyncpg.Record:
    """What a query gives, in which `{name}` is the schema of the service."""
    async with connected(workshop.url) as connection:
        return await connection.fetchrow(sql.format_map(built.schemas))


# What is known in the whole database, reaches into other schemas, or needs another owner.
NOT_OF_A_SERVICE = re.compile(
    r"\bt\.|\bpublic\.|schema (t|public)\b|publication|owner to|(create|drop) schema|schema s rename|citext"
    r"|default privileges grant"
)


def as_migration(sql: str) -> str:
    sql = re.sub(r"(?<!\w)s\.(?=\w)", "{{schema}}.", sql)
    return re.sub(r"\bschema s\b", "schema {{schema}}", sql).replace("other", "pg_monitor")


async def migrations_of_every_kind(workshop: Workshop) -> dict[str, str]:
    """The statements of the tables that can be migrations of one service one after the other, a file each."""
    version = int(workshop.own.version.partition(".")[0])
    changes = sorted(statements.CHANGES, key=lambda each: ("drop" in each.sql, "rename" in each.sql))
    found = ["set search_path to {{schema}}"]
    async with connected(workshop.url) as connection:
        await connection.execute("create schema scratch; set search_path to scratch; set client_min_messages to error")
        await connection.execute("begin")
        for statement in [*statements.SETUP, *changes]:
            if statement.superuser or statement.alone or statement.since > version:
                continue
            if NOT_OF_A_SERVICE.search(statement.sql):
                continue
            sql = as_migration(statement.sql)
            await connection.execute("savepoint before")
            try:
                await connection.execute(sql.replace("{{schema}}", "scratch"))
                found.append(sql)
            except asyncpg.PostgresError:
                await connection.execute("rollback to before")
        await connection.execute("rollback")
    return {f"{number:03d}.sql": sql for number, sql in enumerate(found)}


def test_it_has_every_kind_of_object(workshop: Workshop) -> None:
    async def go() -> None:
        files = await migrations_of_every_kind(workshop)
        assert len(files) > 200
        await same_when_replayed(workshop, {"every": workshop.service("every", files)}, own=True)

    asyncio.run(go())


USERS = """
create extension citext;
create table {{tables.users}} (id serial primary key, email public.citext unique, made timestamptz default now());
insert into {{tables.users}} (email) values ('admin');
"""
TEAMS = """
create table {{tables.teams}} (
    id uuid primary key default gen_random_uuid(), boss int references {{tables.users.users}}
);
insert into {{tables.teams}} (boss) select id from {{tables.users.users}};
create function {{schema}}.boss_of(team uuid) returns public.citext language plpgsql as $body$
begin
    -- {{tables.users.users}} and {{tables.teams}}; $1 and $$ are not what they seem
    return (select email from {{tables.users.users}} join {{tables.teams}} t on t.boss = users.id where t.id = team);
end $body$;
"""
ITEMS = "create view {{tables.bosses}} as select distinct boss from {{tables.team_list.teams}};"


async def load(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.execute("insert into {{tables.teams}} (boss) values ($1)", 1)
    await database.sibling("users").execute("insert into {{tables.users}} (email) values ('late')")


@pytest.mark.parametrize("path", [None, "$service, public", "pg_catalog, public", "none"])
@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_it_has_services_that_need_each_other_and_their_seeds(workshop: Workshop, own: bool, path: str | None) -> None:
    async def go() -> None:
        seed = workshop.folder / "seed.sql"
        seed.write_text("insert into {{tables.users}} (email) select email || '!' from {{tables.users}} -- all")
        services = {
            "users": workshop.service("users", USERS, seed=[{"users": [{"email": "a"}, {}]}, str(seed)], module="u"),
            "Team List": workshop.service("teams", TEAMS, seed=load, migrations_table="Applied"),
            "items": workshop.service("items", {"1_a.sql": ITEMS, "2_b.sql": "select 1 -- {{tables.users.users}}"}),
        }
        _, built = await same_when_replayed(workshop, services, own=own, path=path)
        seen = await row(
            workshop,
            built,
            "select (select array_agg(email::text order by id) from {users}.users) as emails,"
            ' (select count(*) from "{Team List}".teams) as teams, (select count(*) from {items}.bosses) as bosses,'
            ' (select "{Team List}".boss_of(id) from "{Team List}".teams limit 1) as boss,'
            ' (select array_agg(module_name) from "{Team List}".applied) as modules',
        )
        assert dict(seen) == {
            "emails": ["admin", "a", None, "admin!", "a!", None, "late"],
            "teams": 7,
            "bosses": 6,
            "boss": "admin",
            "modules": [None],
        }

    asyncio.run(go())


ODD = {
    "01_no_end": "create table {{tables.t}} (id int, v text) -- {{tables.t}}; and no more",
    "02_no_newline": "insert into {{tables.t}} values (1, 'a') /* ; {{schema}} /* '$$ */ */",
    "03_string": "insert into {{tables.t}} values (2, 'it''s {{tables.t}};\n\\'), (3, E'\\';{{schema}}');",
    "04_dollars": "insert into {{tables.t}} values (4, $$ ';' -- $1 $x$ $$), (5, $x$ $$ {{tables.other.t}} $x$)",
    "05_psql": "-- \\connect nowhere\n/* \\. */ insert into {{tables.t}} values (6, '\n\\.\n\\echo {{tables.t}}\n');;",
    "06_names": 'create table {{schema}}."a ""x"";" (id int); comment on table {{tables.t}} is $$\\$$;',
    "07_unicode": "insert into {{tables.t}} values (7, 'ü€😀\u2028');\r\nselect U&'\\0061' -- \r\n;\r\n",
    "08_comment_first": "-- {{tables.t}};\n/**/ ; select 1",
    "10_begin": "do $$ begin perform 1; end $$; create function {{schema}}.f() returns int begin atomic; select 1; end",
    "11_off": "set standard_conforming_strings to off; set escape_string_warning to off;",
    "12_backslash": "insert into {{tables.t}} values (8, '\\'; {{tables.t}}')",
    "13_dont'n\\t": "insert into {{tables.t}} values (9, '\\\\')",
    "14_$1": "insert into {{tables.t}} values (10, '$1, $4')",
}


def test_it_has_what_odd_texts_make(workshop: Workshop) -> None:
    async def go() -> None:
        services = {"odd": workshop.service("odd", {f"{name}.sql": text for name, text in ODD.items()})}
        _, built = await same_when_replayed(workshop, services)
        seen = await row(workshop, built, "select count(*) as n, max(id) as last from {odd}.t")
        assert dict(seen) == {"n": 10, "last": 10}

    asyncio.run(go())


NOTE = "insert into {{tables.notes}} (what) values (%r);"
TRANSACTIONS = {
    "01": """
        create table {{tables.notes}} (id serial, what text, at timestamptz default now(), clock timestamptz
            default clock_timestamp(), xact xid8 default pg_current_xact_id(), path text
            default current_setting('search_path'), who text default current_user);
        create table {{tables.parents}} (id int primary key);
        create table {{tables.children}} (id int references {{tables.parents}} deferrable initially deferred);
        create type {{schema}}.mood as enum ('ok');
    """,
    "02": NOTE % "one" + NOTE % "two",
    "03": "alter type {{schema}}.mood add value 'sad' before 'ok'; insert into {{tables.children}} values (1);"
    " insert into {{tables.parents}} values (1); " + NOTE % "three",
    "04": "create table {{tables.moods}} (m {{schema}}.mood); insert into {{tables.moods}} values ('sad');",
    "05_commits": NOTE % "four" + "commit;" + NOTE % "five",
    "06_goes_on": NOTE % "six" + "commit; begin;" + NOTE % "seven",
    "07_gives_up": NOTE % "not here" + "rollback;" + NOTE % "eight",
    "08_chain": NOTE % "nine" + "commit and chain;" + NOTE % "ten",
    "09_savepoint": "savepoint s; " + NOTE % "nor here" + "rollback to s; " + NOTE % "eleven",
    "10_sets": "set search_path to {{schema}}; set local work_mem to '1MB'; create temp table kept as select 1 as one;"
    "prepare it as select 12; declare c cursor with hold for select 12; select set_config('my.own', 'twelve', false);",
    "11_has_it": "do $$ begin assert current_setting('work_mem') <> '1MB'; assert (select one from pg_temp.kept) = 1;"
    " end $$; insert into notes (what) values (current_setting('my.own')); fetch c; close c; deallocate it;",
    "12_isolation": "set default_transaction_isolation to serializable; set statement_timeout to '10s'",
    "13_isolated": "insert into notes (what) values (current_setting('transaction_isolation'));",
    "14_role": "grant create, usage on schema {{schema}} to current_user; set role none; reset search_path; "
    + NOTE % "x",
}


def test_transactions_and_the_session_are_as_they_were(workshop: Workshop) -> None:
    """What a migration sees of the ones before it, and which of them are one transaction."""

    async def go() -> None:
        files = {f"{name}.sql": text for name, text in TRANSACTIONS.items()}
        both = await same_when_replayed(workshop, {"notes": workshop.service("notes", files)})
        for column, expected in ("xact", [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]), ("at", None):
            ranked = f"select id, dense_rank() over (order by {column}) from {{notes}}.notes"
            query = f"select array_agg(dense_rank order by id) as ranks from ({ranked}) x"
            first, last = [(await row(workshop, built, query))["ranks"] for built in both]
            assert last == first
            assert expected in (None, last)
        whats = await row(workshop, both[1], "select string_agg(what, ' ' order by id) as said from {notes}.notes")
        assert whats["said"] == "one two three four five six seven eight nine ten eleven twelve serializable x"

    asyncio.run(go())


ALONE = """-- pgdbm:no-transaction
create table if not exists {{tables.marks}} (id serial, xact xid8 default pg_current_xact_id(), what text unique);
-- {{tables.marks}}; nothing
create index concurrently if not exists by_what on {{tables.marks}} (what);
insert into {{tables.marks}} (what) values ('a'), ('b; c');
insert into {{tables.marks}} (what) values ('d {{tables.marks}}'); alter type {{schema}}.mood add value 'c';
insert into {{tables.users.notes}} select what from {{tables.marks}};
create table {{tables.moods}} as select 'c'::{{schema}}.mood as m; select 1"""


def test_statements_without_transaction_stay_alone(workshop: Workshop) -> None:
    async def go() -> None:
        files = {
            "1.sql": "create type {{schema}}.mood as enum ('a', 'b');",
            "2.sql": ALONE,
            "3.sql": "create table {{tables.t}} as select m from {{tables.moods}};",
            "4.sql": "-- pgdbm:no-transaction\nvacuum {{tables.t}}; reindex (verbose) table concurrently {{tables.t}}",
        }
        services = {
            "users": workshop.service("users", "create table {{tables.notes}} (what text)"),
            "marks": workshop.service("marks", files),
        }
        _, built = await same_when_replayed(workshop, services)
        seen = await row(
            workshop, built, "select array_agg(xact::text::bigint order by id) as xacts from {marks}.marks"
        )
        one, two, three = seen["xacts"]
        assert one == two < three

    asyncio.run(go())


def test_a_replay_is_two_messages_for_a_migration_and_a_few_for_a_service(workshop: Workshop) -> None:
    async def go() -> None:
        files = {f"{number}.sql": f"create table {{{{tables.t{number}}}}} (id int)" for number in range(10, 30)}
        plan = workshop.ask("many", {"many": workshop.service("many", files)}).plan
        async with workshop.home() as home:
            await home.build(plan, ())
            async with listening(home) as sent:
                await home.build(plan, ())
        assert len(sent) <= 2 * len(files) + 8
        assert sum("CREATE TABLE IF NOT EXISTS" in each for each in sent) == 1

    asyncio.run(go())


async def said_and_left(workshop: Workshop, home: Home, plan: Plan) -> tuple[str, bool, int]:
    """What a build says, whether it was tried by replay first, and how many schemas there are afterwards."""
    async with listening(home) as sent:
        try:
            await home.build(plan, ())
            said = "built"
        except BuildError as error:
            said = str(error)
    first = next(each for each in sent if "CREATE TABLE IF NOT EXISTS" in each)
    replayed = READS_WHAT_IS_APPLIED not in sent[sent.index(first) + 2]
    return said, replayed, len(await workshop.schemas())


def test_where_a_replay_fails_the_runner_builds_the_set_and_every_later_one(workshop: Workshop) -> None:
    """It fails because of what this migration looks for: that pgdbm reads what is applied."""
    sql = """
        create table {{tables.t}} (id int);
        do $$ begin
            assert exists (
                select from pg_prepared_statements
                where statement like '%SELECT filename%' and statement like '%' || trim('{{schema}}', '"') || '%'
            ), 'nobody has read what is applied';
        end $$;
    """

    async def go() -> None:
        plan = workshop.ask("users", {"users": workshop.service("users", sql)}).plan
        async with workshop.home() as home:
            told = [await said_and_left(workshop, home, plan) for _ in range(3)]
        assert told == [("built", False, 1), ("built", True, 2), ("built", False, 3)]

    asyncio.run(go())


def test_a_failure_of_the_replay_and_of_the_runner_is_told_as_the_runners(workshop: Workshop) -> None:
    async def go() -> None:
        sql = {
            "001.sql": "create table {{tables.t}} (id int);",
            "002.sql": "select 1;\ndo $$ begin assert to_regclass('public.spoilt') is null, 'spoilt'; end $$",
        }
        service = workshop.service("users", sql)
        plan = workshop.ask("users", {"users": service}).plan
        async with workshop.home() as home:
            assert await said_and_left(workshop, home, plan) == ("built", False, 1)
            async with workshop.superuser() as superuser:
                await superuser.execute("create table public.spoilt ()")
            said, replayed, left = await said_and_left(workshop, home, plan)
            path = service.migrations / "002.sql"
            assert said.splitlines()[:3] == [
                "a migration of service 'users' failed",
                f"  {path}, line 2",
                "  the server says: spoilt",
            ]
            assert replayed
            assert left == 1
        await no_superuser_left(workshop)

    asyncio.run(go())


def test_a_seed_that_fails_after_a_replay_fails_once(workshop: Workshop) -> None:
    calls: list[str] = []

    async def once(database: Database) -> None:
        calls.append(database.schema)
        assert len(calls) == 1, "once is enough"

    async def go() -> None:
        plan = workshop.ask("users", {"users": workshop.service("users", "select 1", seed=once)}).plan
        async with workshop.home() as home:
            await home.build(plan, ())
            with pytest.raises(SeedError, match="AssertionError: once is enough"):
                await home.build(plan, ())
        assert len(calls) == 2
        assert await workshop.schemas() == calls[:1]

    asyncio.run(go())


def test_migrations_that_hold_a_schemas_generated_name_are_never_replayed(workshop: Workshop) -> None:
    async def go() -> None:
        name = f"pgdbm_{workshop.run.id}_main_1_users"
        services = {"users": workshop.service("users", f"create table {{{{tables.t}}}} as select '{name}' as name")}
        _, built = await same_when_replayed(workshop, services, replayed=False)
        assert (await row(workshop, built, "select name from {users}.t"))["name"] == name

    asyncio.run(go())


def test_another_text_is_another_content(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.home() as home:
            for column in ("a", "b"):
                services = {
                    "users": workshop.service("users", f"create table {{{{tables.t}}}} as select 1 as {column}")
                }
                built, replayed = await build(home, workshop.ask("users", services).plan)
                assert not replayed
                assert await row(workshop, built, f"select {column} from {{users}}.t")

    asyncio.run(go())


def test_a_migration_that_is_too_slow_in_a_replay_is_told_by_the_runner(workshop: Workshop) -> None:
    async def go() -> None:
        sql = "do $$ begin perform pg_sleep(case when to_regclass('public.slow') is null then 0 else 20 end); end $$"
        plan = workshop.ask("users", {"users": workshop.service("users", sql)}).plan
        async with workshop.home(timeout=0.3) as home:
            await home.build(plan, ())
            async with connected(workshop.url) as connection:
                await connection.execute("create table public.slow ()")
            with pytest.raises(BuildError, match=r"it took longer than the 0\.3 seconds that pgdbm_migration_timeout"):
                await home.build(plan, ())
        assert len(await workshop.schemas()) == 1

    asyncio.run(go())


SCHEMAS = ("pgdbm_0_main_1_a", "pgdbm_0_main_1_a_b", "pgdbm_0_main_11_a")


@pytest.mark.parametrize("call", ["fetchval", "executemany", "fetch"])
def test_what_pgdbm_is_not_known_to_do_is_not_recorded(workshop: Workshop, call: str) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            recorder = Recorder(SCHEMAS)
            watched = Watched(connection, recorder=recorder)
            async with watched.transaction():
                await watched.execute("create temp table t (id int)")
                await watched.execute("insert into t values ($1)", 1)
            await watched.fetch("SELECT id FROM t")
            assert recorder.messages == (
                Template(("begin;\ncreate temp table t (id int);\ninsert into t values (1);\ncommit",)),
            )
            await getattr(watched, call)(
                "insert into t values (2) returning 1", *([[]] if call == "executemany" else [])
            )
            assert recorder.messages is None

    asyncio.run(go())


@pytest.mark.parametrize("argument", [1.5, True, b"x", ["a"]])
def test_nor_an_argument_of_another_type(argument: object) -> None:
    recorder = Recorder(SCHEMAS)
    recorder.statement("select $1", [argument])
    assert recorder.messages is None


PIECES = ["{{schema}}", "{{tables.t}}", "{{tables.one.t}}", "{{tables.two.t}}", "{{tables.other.t}}", "{{tables.", "}}"]
PIECES += [*SCHEMAS, "pgdbm_another_name_0", "_b", "1", '"', "'", "create extension x;", "$$", "--", "\n", " ", "\\1"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_a_template_is_taken_only_if_it_gives_what_pgdbm_renders(text: str) -> None:
    def render(sql: str, schemas: Sequence[str]) -> str:
        watched: Any = object()
        return Builder(
            watched, schema=schemas[1], names=dict(zip(["one", "two", "three"], schemas, strict=True))
        ).prepare_query(sql)

    try:
        rendered = render(text, SCHEMAS)
    except SchemaError:
        reject()
    template = Template.of(rendered, SCHEMAS)
    assert template.filled(SCHEMAS) == rendered
    recorder = Recorder(SCHEMAS)
    recorder.check(render, [text])
    named = any(name in text for name in SCHEMAS)
    if recorder.messages is None:
        assert named
    else:
        others = ["pgdbm_0_main_2_a", "pgdbm_0_main_3_a_b", "pgdbm_0_main_12_a"]
        assert template.filled(others) == render(text, others)
