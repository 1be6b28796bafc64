"""What a marker or a URL says is refused in words, or is quoted wherever it comes into SQL."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from conftest import Project
from databases import connected, execute
from hostile import NAMES, NASTY, WILD
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from workshop import Workshop

from pytest_pgdbm import Service, fixtures, plugin, report
from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ConfigError, PgdbmError, ServerFailed, UnknownService
from pytest_pgdbm.ground.names import quote_ident, quote_literal
from pytest_pgdbm.leasing.resolver import Library, Resolver
from pytest_pgdbm.servers.choosing import given as at_url
from pytest_pgdbm.settings import resolve

_numbers = itertools.count()

QUOTED = r'"(?:[^"]|"")*"'
# Of what other tests make at the same time, nothing shows here.
HERE = """
select 'schema', nspname::text from pg_namespace where nspname !~ '^pg_(toast_)?temp_'
union all select 'table', relnamespace::regnamespace || '.' || relname from pg_class
union all select 'database', datname from pg_database
    where pg_get_userbyid(datdba) = current_user and current_user ~ '[0-9]'
"""

# What is added to the test for one example goes with it.
with_the_test = settings(
    max_examples=100,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def target(shared_workshop: Workshop) -> Workshop:
    """A workshop in whose database there is what hostile texts want to drop."""
    execute(shared_workshop.url, "create table public.canary (id int)")
    return shared_workshop


@contextmanager
def marked(request: pytest.FixtureRequest, **words: Any) -> Iterator[pytest.Item]:
    """The running test, with a marker that says this."""
    request.node.add_marker(pytest.mark.pgdbm(**words), append=False)
    try:
        yield request.node
    finally:
        request.node.own_markers.pop(0)


def refusal(**words: object) -> str | None:
    """What is said of such a marker before any test runs."""
    return report.marker_error("test_it.py::test_it", (), words, plugin._MARKER_WORDS)


def path_of(request: pytest.FixtureRequest, text: str) -> SearchPath | str | None:
    """The path that a marker gives its test, or why it gives none."""
    if wrong := refusal(search_path=text):
        return wrong
    try:
        with marked(request, search_path=text) as node:
            return fixtures._path(fixtures._marked(node))
    except (PgdbmError, pytest.fail.Exception, pytest.UsageError) as error:
        return str(error)


async def everything(connection: asyncpg.Connection) -> set[tuple[str, str]]:
    """What statements that got in could have made or dropped."""
    return {tuple(row) for row in await connection.fetch(HERE)}


@with_the_test
@given(text=WILD)
@example(text='public"; drop table public.canary; --')
@example(text='public", "x')
@example(text="$service,$service")
@example(text="a\0b")
def test_a_search_path_of_a_marker_is_refused_or_every_entry_is_quoted(
    request: pytest.FixtureRequest, target: Workshop, text: str
) -> None:
    path = path_of(request, text)
    if not isinstance(path, SearchPath):
        assert path is not None
        assert "search_path" in path
        return

    async def go() -> None:
        async with connected(target.url) as connection:
            before = await everything(connection)
            with pytest.raises(ValueError, match="NUL") if "\0" in text else nullcontext():
                said = path.for_schema("mine", always=True)
                if said is not None:
                    assert re.fullmatch(rf"{QUOTED}(?:, {QUOTED})*", said)
                    await connection.execute(f"SET search_path TO {said}")
            assert await everything(connection) == before

    asyncio.run(go())


@given(WILD | st.none() | st.integers() | st.lists(st.text()))
def test_the_other_choices_of_a_marker_are_a_word_of_two_or_refused(value: object) -> None:
    assert (refusal(isolation=value) is None) == (value in ("schema", "database"))
    assert (refusal(reuse=value) is None) == (value in ("on", "off"))


@with_the_test
@given(name=WILD)
def test_seeds_of_a_marker_for_a_service_that_nobody_knows_are_refused(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    with marked(request, seed={f"{name}!": []}) as node, pytest.raises(UnknownService) as caught:
        resolver(tmp_path, node, {"users": Service(tmp_path)})
    assert str(caught.value).startswith(f"unknown service {f'{name}!'!r}")


def resolver(folder: Path, node: pytest.Item, services: dict[str, Service]) -> Resolver:
    """What finds the services of a test that is marked so."""
    seeds = fixtures._marked(node)["seed"]
    test_file = folder / "test_it.py"
    return Resolver(Library(), test_file=test_file, rootdir=folder, offered=services, declarations=[], seeds=seeds)


MAKES = """
do $make$ begin execute format('create table {{{{schema}}}}.%I (%I text)', {table}, {column}); end $make$;
"""


@settings(with_the_test, max_examples=10)
@given(service=NASTY, table=NAMES, column=NAMES, value=NASTY)
def test_seeds_of_a_marker_are_rows_and_nothing_else(
    request: pytest.FixtureRequest, target: Workshop, service: str, table: str, column: str, value: str
) -> None:
    folder = target.folder / f"seeds{next(_numbers)}"
    folder.mkdir()
    hidden = (f"convert_from(decode('{text.encode().hex()}', 'hex'), 'utf8')" for text in (table, column))
    (folder / "1.sql").write_text(MAKES.format(table=next(hidden), column=next(hidden)))
    with marked(request, seed={service: [{table: [{column: value}]}]}) as node:
        asked = resolver(folder, node, {service: Service(folder)}).ask(service)

    async def go() -> None:
        async with target.superuser() as superuser, target.home() as home:
            before = await everything(superuser)
            built = await home.build(asked.plan, asked.others)
            (schema,) = built.schemas.values()
            rows = await superuser.fetch(f"select * from {schema}.{quote_ident(table)}")
            assert [tuple(row.items()) for row in rows] == [((column, value),)]
            assert await home.drop([built]) == ([], [])
            assert await everything(superuser) == before

    asyncio.run(go())


def endpoint_of(url: str) -> Endpoint:
    """What the setting makes of a URL. Raises ConfigError."""
    return at_url(resolve(lambda stem: url if stem == "url" else None, {}, lambda _: None, "ini", Path()))


async def entered(endpoint: Endpoint) -> Endpoint:
    return await login.first_login(endpoint, application_name="injection")


async def entered_or_told(url: str) -> str:
    """The database that was entered, or why none was."""
    try:
        return (await entered(endpoint_of(url))).database
    except (ConfigError, ServerFailed) as error:
        return str(error)


HOSTILE = [
    'shop"; create database stolen; --',
    "o'hare\\'; create table public.stolen (); --",
    "a;b\nc$$d$$ %s {{schema}} ?x=1&y#@:/\u00e9",
]


class Estate:
    """A database of a hostile name, owned by a role of a hostile name, and their URL."""

    def __init__(self, workshop: Workshop, database: str, role: str) -> None:
        self._workshop = workshop
        self.database = database
        self.role = role
        where = urlsplit(workshop.url)
        self.url = (
            f"postgresql://{quote(role, safe='')}:secret9@{where.hostname}:{where.port}/{quote(database, safe='')}"
        )

    def _boss(self, statement: str) -> None:
        execute(login.dsn(self._workshop.own, self._workshop.own.database, self._workshop.own.admin), statement)

    def __enter__(self) -> Estate:
        self._boss(f"create role {quote_ident(self.role)} login createdb password {quote_literal('secret9')}")
        self._boss(f"create database {quote_ident(self.database)} owner {quote_ident(self.role)} strategy file_copy")
        return self

    def __exit__(self, *exception: object) -> None:
        self._boss(f"drop database {quote_ident(self.database)} with (force)")
        self._boss(f"drop role {quote_ident(self.role)}")


@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(database=NAMES, role=NAMES)
@example(database=HOSTILE[0], role=HOSTILE[1])
def test_what_a_url_names_is_entered_under_that_name_and_built_in(target: Workshop, database: str, role: str) -> None:
    number = f"{os.getpid()}{next(_numbers)}"  # so that a name is nobody else's
    database, role = (text.encode()[: 63 - len(number)].decode("utf8", "ignore") + number for text in (database, role))

    async def go(url: str) -> None:
        async with connected(url) as connection:
            before = await everything(connection)
            endpoint = await entered(endpoint_of(url))
            assert (endpoint.database, endpoint.login.user) == (database, role)
            workshop = Workshop(target.own, url, target.folder / number)
            workshop.database = database
            users = workshop.service("users", "create table {{tables.users}} (id int)")
            async with workshop.built("users", {"users": users}) as (home, built):
                assert (await everything(connection)) - before >= {("schema", *built.schemas.values())}
                assert await home.drop([built]) == ([], [])
            workshop.close()
            assert await everything(connection) == before

    with Estate(target, database, role) as estate:
        asyncio.run(go(estate.url))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_at_a_database_of_a_hostile_name_makes_what_is_its_own_and_no_more(
    target: Workshop, pytester: pytest.Pytester, name: str
) -> None:
    async def look() -> set[tuple[str, str]]:
        async with connected(estate.url) as connection:
            return await everything(connection)

    with Estate(target, f"{name}{os.getpid()}", f"{os.getpid()}{name}") as estate:
        before = asyncio.run(look())
        result = Project(pytester, estate.url).run(
            test=f"""
            import asyncpg

            async def test_it(users_db, pgdbm_database, pgdbm_url):
                asks = "select current_database()"
                assert await users_db.fetch_value(asks) == {estate.database!r}
                whole = await pgdbm_database("users")
                for url in (pgdbm_url, users_db.dsn, whole.url):
                    connection = await asyncpg.connect(url)
                    found = await connection.fetchrow("select current_user as role, current_database() as database")
                    await connection.close()
                    assert found["role"] == {estate.role!r}
                    assert found["database"] == {estate.database!r} or url == whole.url
            """
        )
        result.assert_outcomes(passed=1)
        assert asyncio.run(look()) == before


PARAMETERS = ["application_name", "options", "search_path", "target_session_attrs", "sslmode", "client_encoding"]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(PARAMETERS) | NASTY, value=NASTY)
@example(name="options", value="-c search_path=public -c statement_timeout=1")
@example(name="application_name", value="'; drop table public.canary; --")
def test_what_stands_behind_the_question_mark_is_refused_or_does_nothing(
    target: Workshop, name: str, value: str
) -> None:
    url = f"{target.url}?{quote(name, safe='')}={quote(value, safe='')}"

    async def go() -> None:
        async with target.superuser() as superuser:
            before = await everything(superuser)
            answer = await entered_or_told(url)
            assert answer == target.database or urlsplit(url).password not in answer
            assert await everything(superuser) == before

    asyncio.run(go())
