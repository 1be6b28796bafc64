"""Whatever `DROP SCHEMA … CASCADE` would take of somebody else's is noticed before; the server itself is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import asyncpg
import pytest
from workshop import Workshop

from pytest_pgdbm.ground.names import quote_literal, schema_name
from pytest_pgdbm.schemas.drop import drop, thin_out
from pytest_pgdbm.schemas.proof import Proof

OURS = """
create table {s}.t (id serial primary key, name text, n int unique);
create table {s}.other (id int references {s}.t, t {s}.t);
create table {s}.parted (id int primary key, at int) partition by range (id);
create table {s}.parted_one partition of {s}.parted for values from (0) to (10);
create type {s}.mood as enum ('good', 'bad');
create type {s}.pair as (a int, b {s}.mood);
create domain {s}.positive as int check (value > 0);
create type {s}.span as range (subtype = float8);
create function {s}.f(int) returns int language sql immutable as 'select $1';
create function {s}.yes(int) returns bool language sql immutable as 'select true';
create function {s}.cmp(int, int) returns int language sql immutable as 'select $1 - $2';
create function {s}.eq({s}.mood, {s}.mood) returns bool language sql immutable as 'select $1::text = $2::text';
create function {s}.tr() returns trigger language plpgsql as 'begin return new; end';
create aggregate {s}.total(int) (sfunc = int4pl, stype = int);
create operator {s}.=== (leftarg = {s}.mood, rightarg = {s}.mood, function = {s}.eq, commutator = operator({s}.===));
create operator class {s}.ints for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=,
    operator 5 >, function 1 {s}.cmp(int, int);
create collation {s}.plain from "C";
create text search dictionary {s}.words (template = simple);
create text search configuration {s}.search (copy = pg_catalog.simple);
alter text search configuration {s}.search alter mapping for word with {s}.words;
create cast (text as {s}.mood) with inout;
create sequence {s}.numbers;
create view {s}.v as select id, {s}.f(n) from {s}.t;
create materialized view {s}.m as select id from {s}.v;
create statistics {s}.st on id, n from {s}.t;
create policy p on {s}.t using ({s}.yes(id));
create trigger tr before insert on {s}.t for each row execute function {s}.tr();
create rule r as on delete to {s}.other do also delete from {s}.t;
alter default privileges in schema {s} grant select on tables to public;
insert into {s}.t (name, n) values ('ours', 1);
"""

TAKEN = {
    "a view": "create view theirs.x as select * from {s}.t",
    "a view on our view": "create view theirs.x as select * from {s}.v",
    "a view with our function": "create view theirs.x as select {s}.f(1)",
    "a view with our operator": "create view theirs.x as select a operator({s}.===) b as c from (select"
    " null::{s}.mood as a, null::{s}.mood as b) q",
    "a materialized view": "create materialized view theirs.x as select * from {s}.m; create index on theirs.x (id)",
    "a column of our enum": "create table theirs.x (id int, m {s}.mood); insert into theirs.x values (1, 'good')",
    "a column of our enum's array": "create table theirs.x (id int, m {s}.mood[])",
    "a column of our row type": "create table theirs.x (id int, m {s}.t)",
    "a column of our composite type": "create table theirs.x (id int, m {s}.pair)",
    "a column of our domain": "create table theirs.x (id int, m {s}.positive)",
    "a column of our range": "create table theirs.x (id int, m {s}.span)",
    "a column with our collation": "create table theirs.x (id int, m text collate {s}.plain)",
    "a foreign key": "create table theirs.x (id int references {s}.t)",
    "a foreign key to a unique column": "create table theirs.x (id int references {s}.t (n))",
    "a foreign key to our partitioned table": "create table theirs.x (id int references {s}.parted)",
    "a default from our sequence": "create table theirs.x (id int default nextval('{s}.numbers'))",
    "a default from our function": "create table theirs.x (id int default {s}.f(1))",
    "a generated column": "create table theirs.x (id int, g int generated always as ({s}.f(id)) stored)",
    "a check": "create table theirs.x (id int check ({s}.yes(id)))",
    "an index over our function": "create table theirs.x (id int); create index on theirs.x ({s}.f(id))",
    "an index where our function says so": "create table theirs.x (id int); create index on theirs.x (id)"
    " where {s}.yes(id)",
    "an index with our operator class": "create table theirs.x (id int); create index on theirs.x (id {s}.ints)",
    "a child by inheritance": "create table theirs.x () inherits ({s}.t)",
    "an attached partition": "create table theirs.x (id int primary key, at int); insert into theirs.x values (20, 1);"
    " alter table {s}.parted attach partition theirs.x for values from (10) to (30)",
    "a trigger with our function": "create table theirs.x (id int); create trigger x before insert on theirs.x"
    " for each row execute function {s}.tr()",
    "a trigger when our function says so": "create table theirs.x (id int); create trigger x before insert on theirs.x"
    " for each row when ({s}.yes(new.id)) execute function theirs.tr()",
    "a policy": "create table theirs.x (id int); create policy x on theirs.x using ({s}.yes(id))",
    "a rule": "create table theirs.x (id int); create rule x as on insert to theirs.x do also"
    " insert into {s}.t (name) values ('x')",
    "a function that takes our type": "create function theirs.x({s}.mood) returns int language sql as 'select 1'",
    "a function that gives our table's rows": "create function theirs.x() returns setof {s}.t language sql"
    " as 'select null::int, null::text, null::int'",
    "a function with a parsed body": "create function theirs.x() returns bigint begin atomic"
    " select count(*) from {s}.t; end",
    "a procedure": "create procedure theirs.x({s}.mood) language sql as 'select 1'",
    "a function with a default": "create function theirs.x(a int default {s}.f(1)) returns int language sql"
    " as 'select 1'",
    "an aggregate": "create aggregate theirs.x(int) (sfunc = {s}.cmp, stype = int)",
    "an operator": "create operator theirs.### (leftarg = int, rightarg = int, function = {s}.cmp)",
    "an operator class": "create operator class theirs.x for type int using btree as operator 1 <, operator 2 <=,"
    " operator 3 =, operator 4 >=, operator 5 >, function 1 {s}.cmp(int, int)",
    "a member of an operator family": "create operator family theirs.x using btree;"
    " alter operator family theirs.x using btree add function 1 (int, int) {s}.cmp(int, int)",
    "a domain over ours": "create domain theirs.x as {s}.positive",
    "a domain with a check": "create domain theirs.x as int check ({s}.yes(value))",
    "a range over our type": "create type theirs.x as range (subtype = {s}.positive, subtype_opclass = int4_ops)",
    "a composite of our type": "create type theirs.x as (a {s}.mood)",
    "a cast between their type and ours": "create cast (theirs.kind as {s}.mood) with inout",
    "statistics on our table": "create statistics theirs.x on id, n from {s}.t",
    "statistics over our function": "create table theirs.x (id int); create statistics theirs.st on {s}.f(id)"
    " from theirs.x",
    "a text search configuration": "create text search configuration theirs.x (copy = pg_catalog.simple);"
    " alter text search configuration theirs.x alter mapping for word with {s}.words",
    "an index with our configuration": "create table theirs.x (t text); create index on theirs.x using gin"
    " (to_tsvector('{s}.search'::regconfig, t))",
    "a use of an extension in our schema": "create extension citext schema {s}; create table theirs.x (c {s}.citext)",
    "an extension on one in our schema": "create extension cube schema {s}; create extension earthdistance"
    " schema theirs",
    "a server of an extension in our schema": "create extension postgres_fdw schema {s};"
    " create server theirs foreign data wrapper postgres_fdw;"
    " create user mapping for current_user server theirs options (password 'theirs')",
    "an exclusion constraint": "create table theirs.x (r {s}.span, exclude using gist (r with &&))",
}

LEFT = {
    "nothing else": "select 1",
    "a publication of our table": "create publication theirs for table {s}.t",
    "a publication of our schema": "create publication theirs for tables in schema {s}",
    "a trigger on our table with their function": "create trigger x before insert on {s}.t for each row"
    " execute function theirs.tr()",
    "a view of ours on their table": "create table theirs.x (id int); create view {s}.x as select * from theirs.x",
    "a key of ours to their table": "create table theirs.x (id int primary key);"
    " create table {s}.x (id int references theirs.x)",
    "our child of their table": "create table theirs.x (id int); create table {s}.x () inherits (theirs.x)",
    "our partition of our table": "create table {s}.x (id int) partition by range (id);"
    " create table {s}.x1 partition of {s}.x for values from (1) to (2)",
    "an event trigger with our function": "create function {s}.et() returns event_trigger language plpgsql"
    " as 'begin end'; create event trigger theirs on ddl_command_start when tag in ('CREATE RULE')"
    " execute function {s}.et()",
    "an extension in our schema": "create extension citext schema {s}; create table {s}.x (c {s}.citext)",
    "a use of theirs": "create table {s}.x (k theirs.kind)",
    "an extension elsewhere": "create extension citext schema theirs; create table {s}.x (c theirs.citext)",
    "somebody's temporary table": "create temp table x (m {s}.mood)",
    "our view's comment": "comment on view {s}.v is 'x'; grant select on {s}.v to public",
}

_CATALOGS = [
    "pg_class",
    "pg_type",
    "pg_proc",
    "pg_attrdef",
    "pg_constraint",
    "pg_trigger",
    "pg_rewrite",
    "pg_policy",
    "pg_operator",
    "pg_opclass",
    "pg_opfamily",
    "pg_amop",
    "pg_amproc",
    "pg_cast",
    "pg_collation",
    "pg_conversion",
    "pg_ts_config",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_statistic_ext",
    "pg_extension",
    "pg_event_trigger",
    "pg_publication",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_language",
    "pg_namespace",
    "pg_am",
    "pg_transform",
    "pg_default_acl",
]
_EVERYTHING = (
    "select classid, objid, objsubid, (pg_identify_object(classid, objid, objsubid)).identity from ("
    + " union all ".join(
        f"select '{catalog}'::regclass as classid, oid as objid, 0 as objsubid from {catalog} where oid >= 16384"
        for catalog in _CATALOGS
    )
    + " union all select 'pg_class'::regclass, attrelid, attnum from pg_attribute"
    " where attnum > 0 and not attisdropped and attrelid >= 16384"
    " union all select 'pg_ts_config_map'::regclass, mapcfg, mapseqno * 1000 + maptokentype from pg_ts_config_map"
    " where false) x where true"
)

Everything = dict[tuple[int, int, int], str]


async def everything(connection: asyncpg.Connection) -> Everything:
    """All objects of the database that somebody made, by the server's own catalogs."""
    rows = await connection.fetch(_EVERYTHING)
    return {(row["classid"], row["objid"], row["objsubid"]): row["identity"] for row in rows}


async def would_go(connection: asyncpg.Connection, schema: str, of: Iterable[tuple[int, int, int]]) -> set[str]:
    """Which of these objects DROP SCHEMA CASCADE takes: it is done, looked at, and undone."""
    before = await everything(connection)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"drop schema {schema} cascade")
    after = await everything(connection)
    await transaction.rollback()
    return {before[key] for key in of if key in before and key not in after}


async def data(connection: asyncpg.Connection) -> dict[str, list[asyncpg.Record]]:
    """What is in their tables."""
    tables = await connection.fetch(
        "select c.oid::regclass::text as name from pg_class c"
        " where relnamespace = 'theirs'::regnamespace and relkind in ('r', 'm', 'v')"
    )
    return {table["name"]: await connection.fetch(f"select x::text from {table['name']} x") for table in tables}


@pytest.fixture
def schema(shared_workshop: Workshop) -> str:
    return schema_name("users", run=shared_workshop.run.id, worker="gw0", number=1)


async def prepare(connection: asyncpg.Connection, schema: str, proof: Proof) -> None:
    await connection.execute("set client_min_messages = error; drop schema if exists theirs cascade")
    await connection.execute(f"drop schema if exists {schema} cascade; drop publication if exists theirs")
    await connection.execute("create schema theirs; create type theirs.kind as enum ('good')")
    await connection.execute("create function theirs.tr() returns trigger language plpgsql as 'begin return new; end'")
    await connection.execute(f"create schema {schema}")
    await connection.execute(f"comment on schema {schema} is {quote_literal(proof.comment('users'))}")
    await connection.execute(OURS.format(s=schema))


@pytest.mark.parametrize("what", TAKEN)
def test_what_cascade_would_take_keeps_the_schema(shared_workshop: Workshop, schema: str, what: str) -> None:
    async def go() -> None:
        proof = Proof(shared_workshop.run.id)
        async with shared_workshop.superuser() as connection:
            await prepare(connection, schema, proof)
            ours = await everything(connection)
            await connection.execute(TAKEN[what].format(s=schema))
            all_, rows = await everything(connection), await data(connection)
            taken = await would_go(connection, schema, all_.keys() - ours.keys())
            assert taken, "not a case: the server would take nothing of theirs"
            kept = await drop(connection, [schema], proof)
            assert [each.name for each in kept] == [schema]
            assert any(name in kept[0].why for name in taken), (kept[0].why, taken)
            assert await everything(connection) == all_
            assert await data(connection) == rows

    asyncio.run(go())


HOLDING_THEIRS = {
    "a partition": "create table {s}.x partition of theirs.x for values from (1) to (9)",
    "one that was attached": "create table {s}.x (id int); alter table theirs.x attach partition {s}.x"
    " for values from (1) to (9)",
    "one with partitions": "create table {s}.x partition of theirs.x for values from (1) to (9) partition by list (id);"
    " create table {s}.x1 partition of {s}.x for values in (7)",
}


@pytest.mark.parametrize("what", HOLDING_THEIRS)
def test_a_table_that_takes_up_rows_of_theirs_keeps_the_schema(
    shared_workshop: Workshop, schema: str, what: str
) -> None:
    """The server takes a partition along without a question, and with it what came in by the whole."""

    async def go() -> None:
        proof = Proof(shared_workshop.run.id)
        async with shared_workshop.superuser() as connection:
            await prepare(connection, schema, proof)
            await connection.execute("create table theirs.x (id int) partition by range (id)")
            await connection.execute(HOLDING_THEIRS[what].format(s=schema))
            await connection.execute("insert into theirs.x values (7)")
            await thin_out(connection, schema, proof, seconds=5)
            (kept,) = await drop(connection, [schema], proof)
            assert kept.why == "what the plugin did not make depends on it: rows of table theirs.x"
            assert await connection.fetchval("select id from theirs.x") == 7
            await connection.execute(f"alter table theirs.x detach partition {schema}.x")
            assert await drop(connection, [schema], proof) == []

    asyncio.run(go())


@pytest.mark.parametrize("thinning", [False, True], ids=["at once", "thinned out"])
@pytest.mark.parametrize("what", LEFT)
def test_what_cascade_leaves_alone_keeps_nothing(
    shared_workshop: Workshop, schema: str, what: str, thinning: bool
) -> None:
    async def go() -> None:
        proof = Proof(shared_workshop.run.id)
        async with shared_workshop.superuser() as connection, shared_workshop.superuser() as another:
            await prepare(connection, schema, proof)
            await another.execute(LEFT[what].format(s=schema))
            before = await everything(connection)
            if thinning:
                await thin_out(connection, schema, proof, seconds=5)
            assert await drop(connection, [schema], proof) == []
            after = await everything(connection)
            gone = {name for key, name in before.items() if key not in after}
            assert not {name for name in gone if name.startswith("theirs.")}
            assert not {name for name in after.values() if schema in name}

    asyncio.run(go())
