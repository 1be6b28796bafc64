"""Which databases tests may run in: by the name, by what is in them, or because somebody said so."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator

import pytest
from conftest import Project
from databases import connected, drop_database, execute
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pgdbm import PgdbmServer
from pytest_pgdbm.connections import guard, login
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.settings import Setting

_numbers = itertools.count()

ONE_TEST = "async def test_it(users_db): await users_db.execute('select 1')"


@pytest.mark.parametrize(
    "name",
    [
        *("test", "tests", "testing", "ci", "pytest", "app_test", "test_app", "app-ci-2", "App_TEST", "shop_ci"),
        *("test1", "1test2", "app2tests", "_test", "test-", "a_b_pytest_c", "testing_ground"),
    ],
)
def test_these_names_are_of_databases_for_tests(name: str) -> None:
    assert guard.named_for_tests(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "postgres", "shop", "prod", "contest", "latest", "attestation", "testimonials", "protest", "circle"),
        *("AppTest", "appTest", "tester", "cicd", "pytests", "te_st", "t-est", "app.test", "app test", "test$"),
        *("te\u017ft", "c\u0131", "te\u0455t", "\uff54\uff45\uff53\uff54", "test\u0661", "test\u00e9", "c\u0130"),
    ],
)
def test_these_names_are_not(name: str) -> None:
    assert not guard.named_for_tests(name)


LETTERS = st.text(st.sampled_from("testincpy_-09aATECI\u00e9.\u017f \u0131"), max_size=12)


@given(LETTERS | st.text(max_size=12))
@example("test")
def test_a_name_is_for_tests_if_one_of_the_words_stands_alone_in_it(name: str) -> None:
    """The same rule, told the other way round: what is before the word and after it."""
    edges = "_-0123456789"
    small = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)
    alone = any(
        small.startswith(word, at)
        and (at == 0 or small[at - 1] in edges)
        and (at + len(word) == len(small) or small[at + len(word)] in edges)
        for word in guard.WORDS
        for at in range(len(small))
    )
    assert guard.named_for_tests(name) == alone


class Shop:
    """A database whose name says nothing, and the URL of the ordinary role that owns it."""

    def __init__(self, server: PgdbmServer, own: Endpoint) -> None:
        self.server = server
        self.own = own
        self.name = f"shop_{os.getpid()}_{next(_numbers)}"
        self.url = server.url.rpartition("/")[0] + "/" + self.name
        self.place = f"{server.host}:{server.port}"

    def holds(self, *statements: str) -> None:
        """Executes statements as the superuser."""

        async def go() -> None:
            async with connected(login.dsn(self.own, self.name, self.own.admin)) as connection:
                for statement in statements:
                    await connection.execute(statement)

        asyncio.run(go())

    def knock(self, allow: Setting[str | None] = login.NOT_GIVEN, *, user: str | None = None) -> Endpoint:
        """The first login at its URL."""
        who = self.own.login if user is None else Login(user, "secret9")
        url = self.own.tcp_url(self.name, who)
        given = Endpoint("url", "", self.server.host, self.server.port, "said_test", who, who, url=url)
        return asyncio.run(login.first_login(given, application_name="guard", allow=allow))

    def refusal(self, allow: Setting[str | None] = login.NOT_GIVEN, *, user: str | None = None) -> ServerFailed:
        with pytest.raises(ServerFailed) as caught:
            self.knock(allow, user=user)
        return caught.value

    def seen(self) -> list[str]:
        """What the refusal says that is in the database, without sizes."""
        lines = self.refusal().why.splitlines()
        at = lines.index("  it holds what the plugin did not make:")
        return [line.strip().partition(" (")[0] for line in lines[at + 1 :]]


@pytest.fixture
def shop(request: pytest.FixtureRequest, pgdbm_server: PgdbmServer) -> Iterator[Shop]:
    from pytest_pgdbm.fixtures import SESSION

    shop = Shop(pgdbm_server, request.config.stash[SESSION]._get_endpoint())
    execute(pgdbm_server.url, f"create database {shop.name}")
    yield shop
    drop_database(pgdbm_server.url, shop.name)


def test_an_empty_database_is_entered_whatever_it_is_called(shop: Shop) -> None:
    assert shop.knock().database == shop.name


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("create table t (id int)", "1 table"),
        ("create table t (id serial primary key)", "1 sequence, 1 table"),
        ("create table t (id int generated always as identity)", "1 table"),
        ("create table t (id int) partition by list (id)", "1 table"),
        ("create view v as select 1 as one", "1 view"),
        ("create materialized view v as select 1 as one", "1 view"),
        ("create function f() returns int language sql as 'select 1'", "1 function"),
        ("create procedure f() language sql as 'select 1'", "1 function"),
        ("create aggregate a (int) (sfunc = int4pl, stype = int)", "1 function"),
        ("create type mood as enum ('good')", "1 type"),
        ("create type pair as (a int, b int)", "1 type"),
        ("create type span as range (subtype = int)", "1 type"),
        ("create type unfinished", "1 type"),
        ("create domain email as text", "1 type"),
        ("create sequence s", "1 sequence"),
    ],
)
def test_each_kind_of_object_counts(shop: Shop, statement: str, seen: str) -> None:
    shop.holds(statement)
    assert shop.seen() == [f'schema "public": {seen}']


def test_a_foreign_table_counts_and_so_does_the_server_that_it_would_need(shop: Shop) -> None:
    shop.holds(
        "create foreign data wrapper nothing",
        "create server elsewhere foreign data wrapper nothing",
    )
    assert shop.seen() == ["in no schema: 1 foreign server"]
    shop.holds("create foreign table t (id int) server elsewhere")
    assert shop.seen() == ["in no schema: 1 foreign server", 'schema "public": 1 foreign table']


def test_a_large_object_counts(shop: Shop) -> None:
    shop.holds("select lo_create(0), lo_create(0)")
    assert shop.seen() == ["in no schema: 2 large objects"]


@pytest.mark.parametrize(
    "statements",
    [
        ["create schema empty"],
        ["create extension earthdistance cascade", "create schema apart", "create extension citext schema apart"],
        ["create extension hstore", "create extension postgres_fdw"],
        ["comment on database {database} is 'precious'"],
        ["create schema {ours}", "comment on schema {ours} is {comment}", "create table {ours}.t (id serial, e text)"],
        ["create function pg_catalog.of_the_provider() returns int language sql as 'select 1'"],
        ["create collation public.mine (locale = 'C')"],
    ],
)
def test_what_is_no_sign_of_use_does_not_count(shop: Shop, statements: list[str]) -> None:
    run = "0123456789"
    comment = quote_literal(Proof(run).comment("users"))
    shop.holds(*(s.format(database=shop.name, ours=f"pgdbm_{run}_gw0_3_users", comment=comment) for s in statements))
    shop.knock()


def test_what_another_session_has_for_itself_does_not_count(shop: Shop) -> None:
    async def go() -> None:
        async with connected(shop.url) as other:
            await other.execute("create temp table t (id int); create temp view v as select * from t")
            await asyncio.to_thread(shop.knock)

    asyncio.run(go())


OURS = "pytest-pgdbm schema of run 0123456789, process 1 on host, service 'users'"


@pytest.mark.parametrize(
    ("schema", "comment"),
    [
        ("pgdbm_0123456789_gw0_3_users", None),
        ("pgdbm_0123456789_gw0_3_users", "ours"),
        ("pgdbm_0123456789_gw0_3_users", OURS.replace("0123456789", "9876543210")),
        ("pgdbm_0123456789_gw0_3_users", OURS.replace("schema", "database")),
        ("pgdbm_0123456789_gw0_3_users", OURS.removeprefix("pytest-")),
        ("pgdbm_0123456789_gw0_users", OURS),
        ("Pgdbm_0123456789_gw0_3_users", OURS),
        ("pgdbm", OURS),
        ("users", OURS),
    ],
)
def test_a_schema_that_only_looks_as_if_a_run_had_made_it_counts(shop: Shop, schema: str, comment: str | None) -> None:
    shop.holds(f"create schema {quote_ident(schema)}", f"create table {quote_ident(schema)}.t ()")
    if comment is not None:
        shop.holds(f"comment on schema {quote_ident(schema)} is {quote_literal(comment)}")
    assert shop.seen() == [f'schema "{schema}": 1 table']


def test_the_refusal_shows_what_was_seen_and_the_ways_out(shop: Shop) -> None:
    shop.holds(
        "create table orders (id int primary key)",
        "insert into orders select generate_series(1, 100000)",
        "create view open_orders as select * from orders",
        "create schema billing",
        "create table billing.bills ()",
        "create table billing.reminders ()",
    )
    refused = shop.refusal()
    first, words, holds, biggest, other = refused.why.splitlines()
    assert first == (f'database "{shop.name}" at {shop.place} does not look like one for tests; nothing was written')
    assert words == "  its name has none of the words test, tests, testing, ci, pytest"
    assert holds == "  it holds what the plugin did not make:"
    assert biggest.startswith('    schema "public": 1 table, 1 view (')
    assert biggest.endswith(" kB)")
    assert other == '    schema "billing": 2 tables (0 bytes)'
    assert refused.remedy == (
        "give the URL of an empty database, or of one whose name has such a word, as shop_test; if tests may have"
        f" schemas in this one, say so: --pgdbm-url-allow={shop.name} (or PGDBM_URL_ALLOW, pgdbm_url_allow)"
    )
    assert (shop.own.login.password or "") not in str(refused)


def test_of_many_schemas_few_are_named(shop: Shop) -> None:
    for number in range(8):
        shop.holds(f"create schema s{number}", *(f"create table s{number}.t{n} ()" for n in range(number + 1)))
    lines = shop.refusal().why.splitlines()[3:]
    assert lines[0] == '    schema "s7": 8 tables (0 bytes)'
    assert lines[-2:] == ['    schema "s3": 4 tables (0 bytes)', "    … and 3 more schemas"]


def test_names_do_not_steer_the_terminal(shop: Shop) -> None:
    shop.holds('create schema "a\x1b[2J\nb"', 'create table "a\x1b[2J\nb".t ()')
    assert shop.seen() == ['schema "a\\x1b[2J\\nb": 1 table']


def test_who_says_the_live_databases_name_may_enter(shop: Shop) -> None:
    shop.holds("create table t ()")
    assert shop.knock(Setting(shop.name, "--pgdbm-url-allow")).database == shop.name


@pytest.mark.parametrize("other", ["prod_a", "said_test", "*", "%", "{0} ", "{0},prod_a", "SHOP", ""])
def test_a_setting_that_was_copied_from_elsewhere_opens_nothing(shop: Shop, other: str) -> None:
    shop.holds("create table t ()")
    named = other.format(shop.name)
    refused = shop.refusal(Setting(named, "PGDBM_URL_ALLOW"))
    assert refused.why.startswith(f'database "{shop.name}" at ')
    assert refused.why.splitlines()[-1] == f"  url-allow={named} (from PGDBM_URL_ALLOW) allows another database"


def test_a_table_that_somebody_has_locked_is_counted_though_not_measured(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_BOUNDED", "set local lock_timeout = '10ms'")
    shop.holds("create table t ()")

    async def go() -> ServerFailed:
        async with connected(shop.url) as other:
            async with other.transaction():
                await other.execute("select 1")
            async with connected(login.dsn(shop.own, shop.name, shop.own.admin)) as owner, owner.transaction():
                await owner.execute("lock table t in access exclusive mode")
                return await asyncio.to_thread(shop.refusal)

    assert asyncio.run(go()).why.splitlines()[-1] == '    schema "public": 1 table'


@pytest.fixture
def stranger(shop: Shop) -> Iterator[str]:
    """A role that may log in and make schemas, and see no row of anybody's."""
    name = f"stranger_in_{shop.name}"
    shop.holds(f"create role {name} login password 'secret9'", f"grant create on database {shop.name} to {name}")
    yield name
    shop.holds(f"drop owned by {name}", f"drop role {name}")


def test_a_role_that_may_read_nothing_sees_what_is_there(shop: Shop, stranger: str) -> None:
    shop.holds("create schema hidden", "create table hidden.t (id int)", "revoke all on schema public from public")
    refused = shop.refusal(user=stranger)
    assert '    schema "hidden": 1 table (0 bytes)' in refused.why.splitlines()
    assert "secret9" not in str(refused)


def test_where_the_catalogs_are_closed_the_answer_is_no(shop: Shop, stranger: str) -> None:
    shop.holds("revoke select on pg_catalog.pg_proc from public")
    try:
        refused = shop.refusal(user=stranger)
    finally:
        shop.holds("grant select on pg_catalog.pg_proc to public")
    assert refused.why == (
        f'what database "{shop.name}" at {shop.place} holds could not be seen: permission denied for table pg_proc;'
        " nothing was written to it"
    )
    assert refused.remedy.endswith(f"--pgdbm-url-allow={shop.name} (or PGDBM_URL_ALLOW, pgdbm_url_allow)")


def test_a_tunnel_shows_where_it_ends(shop: Shop) -> None:
    shop.holds("create table t ()")
    who = shop.own.login
    given = Endpoint("url", "", "localhost", shop.own.port, "", who, who, url=shop.url)
    with pytest.raises(ServerFailed) as caught:
        asyncio.run(login.first_login(given, application_name="guard"))
    assert f" at localhost:{shop.own.port} (which is {shop.place}) does not look like" in caught.value.why


EVERYTHING = """
    select 'pg_class', oid from pg_class union all select 'pg_namespace', oid from pg_namespace
    union all select 'pg_description', objoid from pg_description union all select 'pg_proc', oid from pg_proc
    union all select 'pg_extension', oid from pg_extension
"""


class Refused:
    """A project at the URL of a database that is in use, and what is there before and after."""

    def __init__(self, shop: Shop, project: Project) -> None:
        self.shop = shop
        self.project = project
        project.url = shop.url
        shop.holds("create table orders (id int)")

    def everything(self) -> set[tuple[str, int]]:
        async def go() -> set[tuple[str, int]]:
            async with connected(self.shop.url) as connection:
                return {tuple(row) for row in await connection.fetch(EVERYTHING)}

        return asyncio.run(go())


@pytest.fixture
def refused(shop: Shop, own_server_project: Project) -> Refused:
    return Refused(shop, own_server_project)


@pytest.mark.parametrize("more", [[], ["-n", "2"], ["--pgdbm-extensions=citext"], ["--pgdbm-isolation=database"]])
def test_a_run_at_a_database_in_use_writes_nothing_and_takes_no_other_server(refused: Refused, more: list[str]) -> None:
    before = refused.everything()
    result = refused.project.run_apart(*more, test=ONE_TEST)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*pytest-pgdbm could not get a Postgres server",
            f'*  url: database "{refused.shop.name}" at {refused.shop.place} does not look like one for tests; *',
            "*    it holds what the plugin did not make:",
            '*      schema "public": 1 table (0 bytes)',
            f"*  to mend it: *--pgdbm-url-allow={refused.shop.name} *",
        ]
    )
    assert "embedded:" not in result.stdout.str()
    assert refused.everything() == before


def test_a_run_that_is_allowed_by_name_passes(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDBM_URL_ALLOW", refused.shop.name)
    result = refused.project.run(test=ONE_TEST)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"pgdbm: *url-allow={refused.shop.name} (from PGDBM_URL_ALLOW)*"])


def test_a_run_in_an_empty_database_leaves_it_so_that_the_next_may_run(shop: Shop, own_server_project: Project) -> None:
    own_server_project.url = shop.url
    for _ in range(2):
        own_server_project.run(test=ONE_TEST).assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["DATABASE_URL", "POSTGRES_URL", "PG_DSN", "TEST_DATABASE_URL"])
def test_no_other_variable_than_the_plugins_is_a_url(
    shop: Shop, own_server_project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, shop.url)
    result = own_server_project.run("--pgdbm-server=url", test=ONE_TEST)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*server=url (from --pgdbm-server) needs a URL; *"])


def test_database_url_is_not_where_tests_run(
    shop: Shop, own_server_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", shop.url)
    test = f"async def test_it(users_db, pgdbm_server): assert pgdbm_server.port != {shop.server.port}"
    own_server_project.run(test=test).assert_outcomes(passed=1)
