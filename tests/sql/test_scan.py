"""What a migration asks for or names outside of its schema, without false alarms."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pgdbm.sql.scan import Extension, QualifiedName, extensions_created, schemas_named, with_existing_extensions

EXTENSIONS = """-- create extension commented;
create extension "uuid-ossp" with schema public;
CREATE EXTENSION IF NOT EXISTS
  PgCrypto;
select 'create extension text';
do $$ begin create extension inside; end $$;
create /* here */ extension citext -- last"""


def test_extensions_are_found_where_they_are_statements() -> None:
    found = extensions_created(EXTENSIONS)
    assert [(e.name, e.line, e.if_not_exists) for e in found] == [
        ("uuid-ossp", 2, False),
        ("pgcrypto", 3, True),
        ("citext", 7, False),
    ]
    assert [EXTENSIONS[e.start : e.end] for e in found] == [
        'create extension "uuid-ossp" with schema public',
        "CREATE EXTENSION IF NOT EXISTS\n  PgCrypto",
        "create /* here */ extension citext",
    ]


@pytest.mark.parametrize(
    "sql", ["", "create extension", "create extension if not exists", "drop extension x", "alter extension x update"]
)
def test_what_creates_no_extension_is_none(sql: str) -> None:
    assert extensions_created(sql) == []
    assert with_existing_extensions(sql) == sql


def test_each_creation_is_made_conditional_and_nothing_else_changes() -> None:
    expected = EXTENSIONS.replace('extension "uuid', 'extension IF NOT EXISTS "uuid')
    expected = expected.replace("extension citext", "extension IF NOT EXISTS citext")
    assert with_existing_extensions(EXTENSIONS) == expected


@given(st.lists(st.sampled_from(["create extension", " x", ";", " if not exists", "'", "\n", "$$", "--"])).map("".join))
def test_making_conditional_keeps_lines_and_extensions(sql: str) -> None:
    changed = with_existing_extensions(sql)
    assert changed.count("\n") == sql.count("\n")
    before, after = extensions_created(sql), extensions_created(changed)
    assert [(e.name, e.line) for e in after] == [(e.name, e.line) for e in before]
    assert all(e.if_not_exists for e in after)
    assert with_existing_extensions(changed) == changed


def named(sql: str) -> list[str]:
    return [f"{found.schema}.{found.name}" for found in schemas_named(sql)]


@pytest.mark.parametrize(
    "sql",
    [
        "select 1 from auth.users",
        "select 1 from only auth.users u",
        "select 1 from {{tables.t}} t join auth.users u on u.id = t.id",
        "select 1 from {{tables.t}} t left join lateral auth.users u on true",
        "select 1 from {{tables.t}} t, auth.users u where u.id = t.id",
        "select 1 from {{schema}}.z as q, auth.users",
        "select 1 from a b, c as d, auth.users",
        "insert into auth.users (id) values (1)",
        "update auth.users set a = 1",
        "update only auth.users set a = 1",
        "delete from auth.users",
        "merge into auth.users u using x on true when matched then delete",
        "truncate auth.users",
        "truncate table a, only auth.users",
        "copy auth.users (id) from stdin",
        "table auth.users",
        "create table auth.users (id int)",
        "create unlogged table if not exists auth.users (id int)",
        "create table t (id int references auth.users (id))",
        "create table t (id int references auth.users)",
        "create table t (like auth.users including all)",
        "create table t () inherits (auth.users)",
        "create table t partition of auth.users default",
        "alter table if exists only auth.users add x int",
        "drop table if exists a, auth.users cascade",
        "create or replace view auth.users as select 1",
        "refresh materialized view concurrently auth.users",
        "drop sequence auth.users",
        "alter index auth.users rename to x",
        "create unique index concurrently if not exists i on only auth.users (id)",
        "create constraint trigger t after insert or update of x on auth.users execute function f()",
        "create or replace trigger t before insert on auth.users for each row execute function f()",
        "create policy p on auth.users using (true)",
        "drop policy p on auth.users",
        "grant select, update (a) on auth.users to x",
        "revoke all on table auth.users from x",
        "grant select on t, auth.users to x",
        "select auth.users(1)",
        "create table t (id int default auth.users())",
        "create trigger t after insert on t execute procedure auth.users()",
        "alter table t alter c type auth.users using c::text",
        "create type auth.users as enum ('a')",
        "drop domain auth.users",
        "drop function if exists auth.users",
        "select x::auth.users",
        "select cast(x as auth.users)",
        'select 1 from "auth"."users"',
        "SELECT 1 FROM Auth.USERS",
        "select 1 from db.auth.users",
        "select 1 from auth . users",
        "do $$ declare u auth.users%rowtype; begin end $$",
        "do $x$ begin if true then delete from auth.users; end if; end $x$",
        "do language plpgsql $$ begin delete from auth.users; end $$",
        "do $$ begin execute $q$ delete from auth.users $q$; end $$",
        "create function f() returns int language sql as $$ select 1 from auth.users $$",
        "create function f() returns int as 'select 1 from auth.users where a = ''x''' language sql",
        "create or replace procedure f() as E'delete from auth.users' language 'plpgsql'",
        "create function f() returns int begin atomic; select 1 from auth.users; end",
    ],
)
def test_a_schema_is_found_where_a_relation_function_or_type_is_named(sql: str) -> None:
    assert named(sql) == ["auth.users"]


@pytest.mark.parametrize(
    "sql",
    [
        "select users.email from {{tables.users}} users where users.id = 1",
        "select u.email, users.name as n from users u order by u.a, users.b",
        "select 1 from a join users on users.id = a.user_id and users.x in (a.b, users.c)",
        "select 1 from a u, b v where u.x = v.y group by u.a, v.b",
        "select 1 from a where f(a.x, users.y) > users.z",
        "select extract(epoch from users.created) from users",
        "select substring(users.name from users.start for 2), trim(both from users.name) from users",
        "select trim(leading 'x' from users.a), overlay(users.a placing 'x' from users.b) from users",
        "select users.a is distinct from users.b, users.a is not distinct from users.c from users",
        "insert into {{tables.t}} (a) values (1) on conflict (a) do update set a = excluded.a, b = users.c",
        "update {{tables.t}} users set a = users.b where users.c returning users.a, users.b",
        "select * from {{tables.users}} users for update of users",
        "create index i on {{tables.users}} (email)",
        "create policy p on {{tables.t}} using (exists (select 1 from a join b on users.id = b.id))",
        "create trigger t after update of a on {{tables.t}} when (old.a is distinct from new.a)"
        " execute function {{schema}}.f()",
        "select 1 from {{schema}}.users, {{tables.users.users}}",
        "select '{{schema}}.users'::regclass, 'select from auth.users' -- from auth.users",
        "/* from auth.users */ select 1",
        "comment on table x is 'from auth.users'; comment on table x is $$ from auth.users $$",
        "select $$ from auth.users $$",
        "select pg_catalog.now() from pg_catalog.pg_class, information_schema.tables, pg_temp.x",
        "create function f() returns trigger language plpgsql as $$ begin"
        " select count(*) into new.total from users where users.id = new.id;"
        " if old.a is distinct from new.a then new.a := old.a; end if; return new; end $$",
        "do $$ declare v users.id%type; r record; type users.kind%type;"
        " begin for r in select u.id from users u loop execute 'x' using r.id, users.a; end loop; end $$",
        "do $$ begin select a, b into r.a, r.b from t; fetch c into users.a; end $$",
        "create function f() returns text language plpython3u as $$ plpy.execute('select') $$",
        "create function f() returns int language plv8 as $$ from users.x; return plv8.find('a') $$",
        "copy t from stdin with (delimiter as ',', null as 'from auth.users')",
        "select 1.5 from a where a.b % users.c = 0",
        "select users.* from users; select (users).email from users",
        "alter table {{tables.t}} owner to users; alter sequence s owned by users.id",
        "select type u, users.x, view v, users.y from t",
        "select users",
        "from",
        ".",
        "a.",
        "from a.",
        "from .b",
    ],
)
def test_a_column_or_a_text_is_no_schema(sql: str) -> None:
    assert named(sql) == []


def test_names_are_told_with_their_lines_also_inside_of_bodies() -> None:
    sql = """select 1;
create function f() returns void
language plpgsql as $$
begin
  insert into audit.log values (1);
  execute $q$
    delete from audit.old $q$;
end $$;
create function g() returns int as '
  select 1 from "Sales"."Order Lines"' language sql;
select billing.total(1);"""
    assert schemas_named(sql) == [
        QualifiedName("audit", "log", 5),
        QualifiedName("audit", "old", 7),
        QualifiedName("Sales", "Order Lines", 10),
        QualifiedName("billing", "total", 11),
    ]


def test_each_place_of_a_list_is_told() -> None:
    assert named("select 1 from a.b x, c.d as y, e.f; drop table g.h, i, j.k") == ["a.b", "c.d", "e.f", "g.h", "j.k"]


WORDS = [
    *(
        "from",
        "join",
        "on",
        "create",
        "index",
        "table",
        "function",
        "as",
        "do",
        "language",
        "sql",
        "a.b",
        "c",
        ".",
        ",",
    ),
    *("(", ")", ";", "$$", "'", '"', "::", "%", "rowtype", "extract", "{{tables.x}}", "\n", "into", "insert", "only"),
]


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
@example("from from . \n join")
def test_any_text_is_scanned_and_lines_are_lines_of_it(sql: str) -> None:
    for found in schemas_named(sql):
        assert found.schema in sql.split("\n")[found.line - 1]


def test_an_extension_is_a_plain_record() -> None:
    assert extensions_created("create extension x") == [Extension("x", 1, 0, 18, False)]
