"""What the server's errors about names mean in a test is added to its own words; nothing where it would be a guess."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm.connections.hints import explain

SERVICES = {"users": "pgdbm_it_users", "orders": "pgdbm_it_orders"}
GROUND = """
create schema pgdbm_it_users; create schema pgdbm_it_orders;
create extension hstore schema public; create extension pg_trgm schema public;
create type pgdbm_it_users.mood as enum ('good', 'bad');
create table pgdbm_it_users.users (id int, email text, notes json, mood pgdbm_it_users.mood, tags public.hstore);
"""
USERS = "pgdbm_it_users.users"
WAY = "set pgdbm_search_path = pg_catalog, public here and shared_pool_search_path in the application"
KNOWN = "those that can be named here are 'orders', 'users'"


@pytest.fixture(scope="module")
def ground(shared_workshop: Workshop) -> Workshop:
    """A database with two services, and extensions in public."""

    async def go() -> None:
        async with connected(shared_workshop.url) as connection:
            await connection.execute(GROUND)

    asyncio.run(go())
    return shared_workshop


def refused(workshop: Workshop, sql: str, path: str = "pg_catalog") -> asyncpg.PostgresError:
    """What the server says to this on a connection of a shared pool."""

    async def go() -> asyncpg.PostgresError:
        async with connected(workshop.url) as connection:
            await connection.execute(f"set search_path to {path}")
            with pytest.raises(asyncpg.PostgresError) as caught:
                await connection.execute(sql)
            return caught.value

    return asyncio.run(go())


def hint(workshop: Workshop, sql: str) -> str:
    """What is added to it; the server's own hint is left as it is, before ours."""
    error = refused(workshop, sql)
    said = error.hint or ""
    explain(error, SERVICES)
    shown = error.hint or ""
    assert shown.startswith(said)
    return shown.removeprefix(said).strip()


def test_a_table_without_a_template_is_told_how_to_write_it(ground: Workshop) -> None:
    assert hint(ground, "select * from users") == (
        "write {{tables.users}}: a name without it is not found on a shared pool"
    )


def test_one_that_is_made_without_a_schema_is_told_what_the_path_is(ground: Workshop) -> None:
    for sql in ("create table t (id int)", "create type t as enum ('a')"):
        assert hint(ground, sql) == (
            "a table, type or function is created without a schema: write {{tables.x}}, or {{schema}}.x for what is"
            " not a table. Only pg_catalog is on the search path of a shared pool (pgdbm_search_path says another)"
        )


@pytest.mark.parametrize(
    "sql",
    [
        f"insert into {USERS} (emial) values ('a')",
        f"alter table {USERS} drop constraint users_pkey",
        f"alter table {USERS} drop column emial",
        f"select emial from {USERS}",
        f"drop trigger t on {USERS}",
        "select * from pgdbm_it_users.user",
        "select from pg_catalog.nothing(); select 1/0",
        "selekt",
        "select 1/0",
    ],
)
def test_what_is_not_about_a_name_without_schema_is_left_alone(ground: Workshop, sql: str) -> None:
    assert hint(ground, sql) == ""


@pytest.mark.parametrize(
    "sql",
    [
        "select * from usrs.users",
        "create table usrs.more (id int)",
        "create table pgdbm_it_orders.t (id int references usrs.users)",
    ],
)
def test_a_misspelt_service_is_told_with_those_that_there_are_and_the_nearest(ground: Workshop, sql: str) -> None:
    assert hint(ground, sql) == (
        f"if {{{{tables.usrs.…}}}} is meant for a service: {KNOWN}; did you mean 'users'?"
        " needs= ties another to this one"
    )


def test_a_schema_that_is_like_no_service_is_told_with_those_that_there_are(ground: Workshop) -> None:
    assert hint(ground, "select * from billing.invoices") == (
        f"if {{{{tables.billing.…}}}} is meant for a service: {KNOWN}. needs= ties another to this one"
    )


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("select 'a=>1'::hstore", "hstore"),
        ("create table pgdbm_it_users.t (tags hstore)", "hstore"),
        ("select similarity('a', 'b')", "similarity"),
        ("select f from similarity(1, 2) f", "similarity"),
        (f"create index on {USERS} using gin (email gin_trgm_ops)", "gin_trgm_ops"),
    ],
)
def test_what_an_extension_has_in_public_is_told_in_two_ways(ground: Workshop, sql: str, name: str) -> None:
    assert hint(ground, sql) == (
        f"If an extension brings it, write public.{name}, or {WAY}; the service's own is {{{{schema}}}}.{name}"
    )


@pytest.mark.parametrize(
    ("sql", "operator"),
    [
        (f"select from {USERS} where email % 'ada'", "%"),
        (f"select email <-> 'ada' from {USERS}", "<->"),
        # PostgreSQL has these for other types, but none of its own is written with a schema.
        (f"select from {USERS} where tags ? 'a'", "?"),
        (f"select tags -> 'a' from {USERS}", "->"),
        (f"select from {USERS} where tags = tags", "="),
        (f"select tags - 'a'::text from {USERS}", "-"),
        (f"select %% tags from {USERS}", "%%"),
    ],
)
def test_an_operator_of_an_extension_is_told_how_it_is_written_with_a_schema(
    ground: Workshop, sql: str, operator: str
) -> None:
    assert hint(ground, sql) == f"If an extension brings it, write operator(public.{operator}), or {WAY}"
    as_told = sql.replace(operator, f"operator(public.{operator})", 1)
    assert isinstance(refused(ground, f"{as_told}; select 1/0"), asyncpg.DivisionByZeroError)


@pytest.mark.parametrize(
    "condition",
    [
        "id = 'a'::text",
        "id || id = 1",
        "id like '1%'",
        "id ~ '1'",
        "id !~~* '1'",
        "notes = notes",
        """notes @> '{"a": 1}'""",
        "notes ? 'a'",
        "email ->> 'a' = 'b'",
        "mood = 1",
        "mood ? 1",
    ],
)
def test_operands_of_types_that_do_not_fit_are_not_blamed_on_an_extension(ground: Workshop, condition: str) -> None:
    sql = f"select from {USERS} where {condition}"
    assert isinstance(refused(ground, sql), asyncpg.UndefinedFunctionError)
    assert hint(ground, sql) == ""


@pytest.mark.parametrize("path", ['"pgdbm_it_users", public', "pgdbm_it_users, public"])
def test_where_the_services_schema_is_on_the_path_a_bare_name_is_looked_for_there(ground: Workshop, path: str) -> None:
    error = refused(ground, "select * from usres", path)
    explain(error, SERVICES, path)
    assert not error.hint
    error = refused(ground, "select * from usrs.users", path)
    explain(error, SERVICES, path)
    assert "did you mean 'users'?" in str(error.hint)


def test_what_is_explained_twice_has_one_hint(ground: Workshop) -> None:
    error = refused(ground, f"select email <-> 'ada' from {USERS}")
    said = str(error)
    explain(error, SERVICES)
    once = str(error)
    explain(error, SERVICES)
    assert str(error) == once
    assert once.startswith(said)
    assert once.count("If an extension brings it") == 1
