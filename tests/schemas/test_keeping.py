"""What is kept for the next run: what shows that it is the same, and how it is written."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import hashlib
import json
import pickle
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workshop import Workshop, resolver

from pytest_pgdbm import Service
from pytest_pgdbm.schemas.kept import outside
from pytest_pgdbm.schemas.kept.content import as_read, content
from pytest_pgdbm.schemas.kept.outside import Outside
from pytest_pgdbm.schemas.kept.record import Entry, Record, Unreadable
from pytest_pgdbm.schemas.plan import Plan

USERS = """
create type {{schema}}.mood as enum ('good', 'bad');
create table {{tables.users}} (id serial primary key, email text unique, feels {{schema}}.mood, more xml,
    check (id > 0), born date default now());
create view {{schema}}.good as select * from {{tables.users}} where feels = 'good';
create function {{schema}}.touch() returns trigger language plpgsql as 'begin return new; end';
create trigger touch before update on {{tables.users}} for each row execute function {{schema}}.touch();
create statistics {{schema}}.together on id, email from {{tables.users}};
create domain {{schema}}.small as int check (value < 9);
create materialized view {{schema}}.some as select * from {{tables.users}};
create table {{tables.parts}} (id int) partition by range (id);
create table {{tables.part}} partition of {{tables.parts}} for values from (0) to (9);
alter table {{tables.users}} enable row level security;
create policy mine on {{tables.users}} using (true);
create rule nothing as on delete to {{tables.parts}} do instead nothing;
alter default privileges in schema {{schema}} grant select on tables to public;
comment on column {{tables.users}}.email is 'where to write to';
create cast ({{schema}}.mood as {{schema}}.small) with inout;
"""
SEED = {"users": [{"email": "ann", "feels": "good"}]}

CHANGES = [
    "create table public.left_behind (id int)",
    "drop table public.left_behind",
    "create view public.seen as select 1 as one",
    "create schema left_behind",
    "alter schema left_behind rename to mine",
    "create function mine.f() returns int language sql as 'select 1'",
    "create or replace function mine.f() returns int language sql as 'select 2'",
    "comment on function mine.f() is 'mine'",
    "grant execute on function mine.f() to pg_monitor",
    "create type mine.mood as enum ('good')",
    "alter type mine.mood add value 'bad'",
    "create domain mine.small as int",
    "alter domain mine.small add check (value < 9)",
    "create operator mine.<% (function = int4lt, leftarg = int, rightarg = int)",
    "create collation mine.plain (locale = 'C')",
    "create text search dictionary mine.words (template = simple)",
    "create cast (mine.mood as mine.small) with inout",
    "create extension hstore",
    "comment on extension hstore is 'mine'",
    "alter extension hstore add function mine.f()",
    "comment on schema public is 'mine'",
    "grant create on schema public to public",
    "alter default privileges grant select on tables to public",
    "create function mine.e() returns event_trigger language plpgsql as 'begin end'",
    "create event trigger e on sql_drop execute function mine.e()",
    "create publication left_behind",
    "create foreign data wrapper left_behind",
    "create server left_behind foreign data wrapper left_behind",
    "create user mapping for current_user server left_behind",
    "create access method left_behind type index handler bthandler",
    "select lo_create(0)",
    "revoke execute on function pg_catalog.pg_sleep from public",
    "grant select on pg_catalog.pg_authid to pg_monitor",
    "comment on function pg_catalog.pg_sleep is 'zzz'",
    "alter database DATABASE set work_mem = '12MB'",
    "alter role current_user in database DATABASE set work_mem = '12MB'",
    "alter database DATABASE connection limit 50",
    "comment on database DATABASE is 'mine'",
    "grant connect on database DATABASE to pg_monitor",
    "alter language plpgsql rename to plsql",
    "drop extension hstore cascade",
]
"""Each after those before it."""


def test_whatever_is_changed_outside_of_a_set_is_seen(workshop: Workshop) -> None:
    async def go() -> list[str]:
        unseen = []
        async with workshop.superuser() as connection:
            known = await outside.take(connection)
            for statement in CHANGES:
                before = known.value
                await connection.execute(statement.replace("DATABASE", workshop.database))
                known = await known.anew(connection)
                if known.value == before:
                    unseen.append(statement)
        return unseen

    assert asyncio.run(go()) == []


def test_a_database_with_tables_that_are_no_sets_is_never_what_it_was(workshop: Workshop) -> None:
    async def go() -> bool:
        async with workshop.superuser() as connection:
            await connection.execute("create table public.of_an_extension (id int)")
            return await (await outside.take(connection)).still(connection)

    assert not asyncio.run(go())


WITHIN = [
    "insert into SCHEMA.users (email) select 'a' || n from generate_series(1, 999) n",
    "analyze SCHEMA.users",
    "alter table SCHEMA.users add another text default 'x'",
    "vacuum full SCHEMA.users",
    "reindex table SCHEMA.users",
    "refresh materialized view SCHEMA.some",
    "truncate SCHEMA.users restart identity",
    "comment on table SCHEMA.users is 'mine'",
    "grant select on SCHEMA.users to public",
    "drop view SCHEMA.good",
    "drop materialized view SCHEMA.some",
    "alter table SCHEMA.users drop column another, drop column more",
    "create temp table t (id serial primary key, told text default 'a', check (id > 0))",
    "create temp view v as select * from t",
    "create function pg_temp.f() returns pg_temp.t language sql as 'select null::pg_temp.t'",
    "vacuum",
    "vacuum freeze",
    "analyze",
    "begin; create table public.never (id int); rollback",
]


async def kept_set(workshop: Workshop, connection: asyncpg.Connection) -> tuple[Outside, Entry]:
    """A set as it is kept, in a database of which it is known what it was like before."""
    known = await outside.take(connection)
    services = {"users": workshop.service("users", USERS, seed=SEED)}
    async with workshop.built("users", services, own=True) as (home, built):
        await home.settle_in(built)
        entry = Entry.of("content", built.schemas, home._site.pristine(built))
    assert entry is not None
    return known, entry


def test_what_is_done_in_a_set_or_a_session_is_not_seen_as_outside_of_it(workshop: Workshop) -> None:
    async def go() -> list[str]:
        seen = []
        async with workshop.superuser() as connection:
            known, entry = await kept_set(workshop, connection)
            assert await known.still(connection, entry.inside)
            assert not await known.still(connection)
            async with workshop.superuser() as other:
                for statement in WITHIN:
                    await other.execute(statement.replace("SCHEMA", entry.schemas["users"]))
                    if not await known.still(connection, entry.inside):
                        seen.append(statement)
        return seen

    assert asyncio.run(go()) == []


def test_what_is_new_in_a_sets_schema_is_seen(workshop: Workshop) -> None:
    async def go() -> bool:
        async with workshop.superuser() as connection:
            known, entry = await kept_set(workshop, connection)
            await connection.execute(f"create table {entry.schemas['users']}.new (id int)")
            return await known.still(connection, entry.inside)

    assert not asyncio.run(go())


@pytest.fixture(scope="module")
def written(shared_workshop: Workshop) -> tuple[Record, bytes]:
    """A record, and what is written of it."""

    async def go() -> Record:
        async with shared_workshop.superuser() as connection:
            known, entry = await kept_set(shared_workshop, connection)
            return Record(frozenset({shared_workshop.run.id}), known, [entry])

    record = asyncio.run(go())
    return record, record.write("18.1")


def test_a_record_is_read_as_it_was_written(written: tuple[Record, bytes]) -> None:
    record, data = written
    assert Record.read(data, "18.1") == record
    (entry,) = record.entries
    one, other = entry.read(), entry.read()
    assert dataclasses.replace(one, copies={}) == dataclasses.replace(other, copies={})
    assert one.copies.keys() == one.seeded.keys()
    assert sorted(copy.content().partition(b"\t")[0] for copy in one.copies.values())[0] == b"1"
    one.close()
    other.close()


def test_a_record_of_another_server_is_not_read(written: tuple[Record, bytes]) -> None:
    assert Record.read(written[1], "18.2") is None


@given(st.data())
def test_a_damaged_record_is_not_read(written: tuple[Record, bytes], data: st.DataObject) -> None:
    record, whole = written
    at = data.draw(st.integers(0, len(whole) - 1))
    part = data.draw(st.binary(max_size=8))
    damaged = whole[:at] + part + (b"" if data.draw(st.booleans()) else whole[at + len(part) :])
    assert Record.read(damaged, "18.1") in (None, record)


def test_a_damaged_set_is_not_read(written: tuple[Record, bytes]) -> None:
    (entry,) = written[0].entries
    with pytest.raises(Unreadable):
        entry._replace(pristine=entry.pristine[:-9]).read()


class Calls:
    """Would do something when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("called",)


@pytest.mark.parametrize("what", [Calls(), Path("x"), {"runs": []}, uuid.uuid4()])
def test_nothing_but_a_record_is_read(
    written: tuple[Record, bytes], capsys: pytest.CaptureFixture[str], what: object
) -> None:
    data = pickle.dumps(what)
    told = json.loads(written[1].partition(b"\n")[0]) | {"sha256": hashlib.sha256(data).hexdigest()}
    assert Record.read(json.dumps(told).encode() + b"\n" + data, "18.1") is None
    with pytest.raises(Unreadable):
        Entry("", {}, (), pickle.dumps(what) if not isinstance(what, dict) else b"").read()
    assert capsys.readouterr().out == ""


class Place:
    """Services in a folder, as a run finds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("users/1.sql", "create table {{tables.users}} (id int)")
        self.write("orders/1.sql", "create table {{tables.orders}} (id int references {{tables.users.users}} (id))")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def plan(self, **options: Any) -> Plan:
        """The plan of both services; `options` are those of `users`."""
        services: Mapping[str, Service] = {
            "users": Service(self.folder / "users", **options).resolved(self.folder),
            "orders": Service(self.folder / "orders"),
        }
        return resolver(self.folder, services).ask("users").plan

    def content(self, others: tuple[str, ...] = (), settings: tuple[str, ...] = (), **options: Any) -> str | None:
        return content(self.plan(**options), others, settings)


def test_the_content_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    one, other = Place(tmp_path / "one"), Place(tmp_path / "other")
    for place in (one, other):
        place.write("seed.sql", "insert into {{tables.users}} values (1)")
    rows = {"users": [{"id": 1, "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)}]}
    seeds = ["seed.sql", rows]
    assert one.content(seed=seeds) == other.content(seed=seeds) is not None


def test_whatever_a_set_is_made_from_changes_its_content(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("seed.sql", "insert into {{tables.users}} values (1)")
    found = [
        place.content(),
        place.content(("others",)),
        place.content(settings=("public",)),
        place.content(module="users"),
        place.content(migrations_table="applied"),
        place.content(extensions="citext"),
        place.content(seed={"users": [{"id": 1}]}),
        place.content(seed={"users": [{"id": "1"}]}),
        place.content(seed={"users": [{"id": 1.0}]}),
        place.content(seed={"users": [{"id": True}]}),
        place.content(seed={"users": [{"id": 1}, {}]}),
        place.content(seed="seed.sql"),
    ]
    place.write("seed.sql", "insert into {{tables.users}} values (2)")
    found.append(place.content(seed="seed.sql"))
    place.write("users/2.sql", "select 1")
    found.append(place.content())
    place.write("users/2.sql", "select 2")
    found.append(place.content())
    (tmp_path / "users/2.sql").rename(tmp_path / "users/3.sql")
    found.append(place.content())
    place.write("orders/2.sql", "select 2")
    found.append(place.content())
    assert None not in found
    assert len(set(found)) == len(found)


class Kind(str, enum.Enum):
    """Values that are more than they look like."""

    ONE = "one"


async def load(database: object) -> None:
    """A seed that is a function."""


@pytest.mark.parametrize(
    "seed",
    [
        load,
        [{"users": []}, load],
        {"users": [{"id": object()}]},
        {"users": [{"id": [Path("x")]}]},
        {"users": [{"id": Kind.ONE}]},
    ],
)
def test_what_cannot_be_told_by_looking_at_it_has_no_content(tmp_path: Path, seed: Any) -> None:
    assert Place(tmp_path).content(seed=seed) is None


def test_migrations_that_were_changed_since_they_were_read_are_noticed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    plan = place.plan()
    assert as_read(plan)
    place.write("orders/2.sql", "select 1")
    assert not as_read(plan)
    (tmp_path / "orders/2.sql").unlink()
    assert as_read(plan)
    (tmp_path / "users/1.sql").write_text("select 1")
    assert not as_read(plan)
    (tmp_path / "users/1.sql").unlink()
    assert not as_read(plan)
