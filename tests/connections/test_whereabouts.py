"""A connection that leads elsewhere than the first login did is refused, and nothing is written where it leads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from conftest import Project
from connections.relays import Relay, relaying
from databases import connected, execute
from deaths.clusters import Cluster, a_cluster
from deaths.scene import AFTER, BEFORE, Scene, counted, scene_of

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.registration import Registration
from pytest_pgdbm.ground import names
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.names import quote_literal
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.schemas.site import Common
from pytest_pgdbm.schemas.sweeper import Sweeper
from pytest_pgdbm.settings import Setting

_numbers = itertools.count()

EVERYTHING = """
    select 'class', oid::text from pg_class union all select 'namespace', oid::text from pg_namespace
    union all select 'database', datname from pg_database union all select 'extension', extname from pg_extension
    union all select 'proc', oid::text from pg_proc union all select 'description', objoid::text from pg_description
"""
SYSTEM = "select system_identifier from pg_control_system()"
CLOSED = "revoke execute on function pg_control_system() from public"
OID = "select oid::int from pg_database where datname = current_database()"


@pytest.fixture(scope="module")
def first(cached_cluster: Path) -> Iterator[Cluster]:
    """The server that the run's URL leads to at first."""
    with a_cluster(cached_cluster) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def copy(cached_cluster: Path, first: Cluster) -> Iterator[Cluster]:
    """A copy of its files, as a staging server is of the real one: the same identifiers in all."""
    with a_cluster(cached_cluster) as cluster:
        cluster.take_passwords(first)
        yield cluster


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, first: Cluster) -> Iterator[Cluster]:
    """A server that has nothing to do with it, but the names of role and databases."""
    with a_cluster(tmp_path_factory.mktemp("other") / "cluster") as cluster:
        cluster.take_passwords(first)
        yield cluster


@pytest.fixture
def relay(first: Cluster) -> Iterator[Relay]:
    with relaying(first.place) as relay:
        yield relay


class Way:
    """The way of a URL through the relay to a database, which several servers may have."""

    def __init__(self, relay: Relay, first: Cluster, database: str) -> None:
        self.relay = relay
        self.first = first
        self.database = database
        self.url = at(first, database, "app").replace(first.place, relay.place)

    def make(self, *statements: str) -> None:
        """The database at the first server, with what somebody keeps there."""
        self.first.run_as_boss(f"create database {self.database} owner app")
        for statement in statements:
            execute(at(self.first, self.database), statement)

    def make_like(self, cluster: Cluster, *statements: str) -> None:
        """The same at another server, with the same oid."""
        oid = ask(at(self.first, self.database), OID)[0][0]
        cluster.run_as_boss(f"create database {self.database} owner app oid {oid}")
        for statement in statements:
            execute(at(cluster, self.database), statement)

    def enter(self, allow: str | None = None) -> Endpoint:
        """The first login."""
        who = login.Login("app")
        host, _, port = self.relay.place.rpartition(":")
        given = Endpoint("url", "", host, int(port), self.database, who, who, url=self.url)
        setting = Setting(allow, "--pgdbm-url-allow")
        return asyncio.run(login.first_login(given, application_name="whereabouts", allow=setting))

    def everything(self, cluster: Cluster) -> set[tuple[str, str]]:
        """All that a run could have made at a server."""
        return {tuple(row) for row in ask(at(cluster, self.database), EVERYTHING)}


def at(cluster: Cluster, database: str, user: str = "boss") -> str:
    return (cluster.boss if user == "boss" else cluster.url).rpartition("/")[0] + "/" + database


def ask(url: str, query: str) -> list[asyncpg.Record]:
    async def go() -> list[asyncpg.Record]:
        async with connected(url) as connection:
            return await connection.fetch(query)

    return asyncio.run(go())


@pytest.fixture
def shop(relay: Relay, first: Cluster) -> Way:
    """To a database whose name says nothing."""
    return Way(relay, first, f"shop_{next(_numbers)}")


@pytest.fixture
def app_test(relay: Relay, first: Cluster) -> Way:
    """To a database that is for tests by its name, which each server has."""
    return Way(relay, first, "app_test")


def works_again(endpoint: Endpoint, happens: Callable[[], object]) -> None:
    """The plugin's connection is used, something happens that ends it, and it is used again."""

    async def go() -> None:
        registration = Registration(names.new_run(), "main")
        admin = Admin(endpoint, endpoint.database, application_name="it", path=None, registration=registration)
        ended = asyncio.Event()
        admin.on_loss.append(ended.set)
        try:
            async with admin.administrator() as connection:
                await connection.execute("select")
            await asyncio.to_thread(happens)
            await ended.wait()
            async with admin.administrator() as connection:
                await connection.execute("select")
        finally:
            await admin.close()

    asyncio.run(go())


def refusal(endpoint: Endpoint, happens: Callable[[], object]) -> str:
    with pytest.raises(ConnectionError) as caught:
        works_again(endpoint, happens)
    return str(caught.value)


def test_a_connection_that_was_cut_comes_back_whatever_tests_have_left_in_the_database(shop: Way) -> None:
    shop.make()
    endpoint = shop.enter()
    execute(at(shop.first, shop.database), "create table left_by_a_test (id int)")
    works_again(endpoint, lambda: shop.relay.lead_to(shop.first.place))


@pytest.mark.parametrize("allowed", [False, True], ids=["empty", "allowed"])
def test_a_server_that_was_started_again_is_the_same_one(shop: Way, allowed: bool) -> None:
    shop.make(*(["create table orders (id int)"] if allowed else []))

    def start_again() -> None:
        shop.first.crash()
        shop.first.come_back()

    works_again(shop.enter(shop.database if allowed else None), start_again)


def test_another_server_is_refused_though_its_database_is_for_tests(app_test: Way, other: Cluster) -> None:
    endpoint, before = app_test.enter(), app_test.everything(other)
    refused = refusal(endpoint, lambda: app_test.relay.lead_to(other.place))
    found, mended = refused.splitlines()
    oids = [ask(at(cluster, "app_test"), OID)[0][0] for cluster in (app_test.first, other)]
    systems = [ask(cluster.boss, SYSTEM)[0][0] for cluster in (app_test.first, other)]
    was, now = (f'database "app_test" (oid {o}, system identifier {s})' for o, s in zip(oids, systems, strict=True))
    assert found == (
        f"{app_test.relay.place} does not lead to where it led when the run began, {was}, but to {now}"
        f" (which is {other.place}); nothing was written there"
    )
    assert mended == (
        "  to mend it: give a URL that leads to one database for as long as the run lasts, and run the tests again"
    )
    assert app_test.everything(other) == before


def test_the_word_that_opened_a_database_opens_none_of_its_name_elsewhere(shop: Way, other: Cluster) -> None:
    shop.make("create table orders (id int)")
    shop.make_like(other, "create table orders (id int)")
    refused = refusal(shop.enter(shop.database), lambda: shop.relay.lead_to(other.place))
    assert f'but to database "{shop.database}" ' in refused


def test_another_database_of_the_server_is_refused(shop: Way) -> None:
    shop.make()
    endpoint = shop.enter()

    def exchange() -> None:
        shop.relay.lead_to("")
        shop.first.run_as_boss(f"alter database {shop.database} rename to {shop.database}_old")
        shop.first.run_as_boss(f"create database {shop.database} owner app")
        shop.relay.lead_to(shop.first.place)

    assert f'but to database "{shop.database}" ' in refusal(endpoint, exchange)


def test_a_copy_of_the_server_is_looked_at_as_at_first(shop: Way, copy: Cluster) -> None:
    shop.make()
    shop.make_like(copy, "create table orders (id int)")
    endpoint, before = shop.enter(), shop.everything(copy)
    refused = refusal(endpoint, lambda: shop.relay.lead_to(copy.place)).splitlines()
    assert refused[0] == (
        f"since the run began {shop.relay.place} was started again, or leads to another server: database"
        f' "{shop.database}" at {shop.relay.place} (which is {copy.place}) does not look like one for tests; nothing'
        " was written"
    )
    assert '    schema "public": 1 table (0 bytes)' in refused
    assert shop.everything(copy) == before


def test_who_may_not_ask_for_the_system_identifier_is_told_from_others_by_what_is_left(
    shop: Way, copy: Cluster
) -> None:
    shop.make(CLOSED)
    shop.make_like(copy, CLOSED, "create table orders (id int)")
    endpoint = shop.enter()
    assert endpoint.identity is not None
    assert endpoint.identity.system == ""
    works_again(endpoint, lambda: shop.relay.lead_to(shop.first.place))
    assert "does not look like one for tests" in refusal(endpoint, lambda: shop.relay.lead_to(copy.place))


def test_a_sweep_looks_where_its_own_connection_leads(app_test: Way, other: Cluster, tmp_path: Path) -> None:
    endpoint, run = app_test.enter(), names.new_run()
    schema = names.schema_name("users", run=run, worker="main", number=1)
    for cluster in (app_test.first, other):
        execute(cluster.url, f"create schema {schema}")
        execute(cluster.url, f"comment on schema {schema} is {quote_literal(Proof(run).comment('users'))}")

    def swept() -> list[str]:
        async def go() -> list[str]:
            sweeper = Sweeper(Common(endpoint, Run(names.new_run(), tmp_path), SearchPath(), None, None, frozenset()))
            await sweeper.begin()
            await sweeper.end()
            return [each.name for each in sweeper.swept.dropped]

        return asyncio.run(go())

    app_test.relay.lead_to(other.place)
    assert swept() == []
    app_test.relay.lead_to(app_test.first.place)
    assert swept() == [schema]
    execute(other.url, f"drop schema {schema}")


@pytest.fixture
def scene(pytester: pytest.Pytester, app_test: Way) -> Iterator[Scene]:
    """A run at the URL through the relay."""
    yield from scene_of(Project(pytester, app_test.url))


WAITS = """
async def test_waits(users_db, wait_for):
    await users_db.execute("insert into {{tables.users}} (email) values ('a')")
    wait_for("go")
    await users_db.execute("insert into {{tables.users}} (email) values ('b')")
"""


def test_a_run_whose_tunnel_leads_elsewhere_makes_nothing_there(scene: Scene, app_test: Way, other: Cluster) -> None:
    execute(other.url, "create table if not exists orders (id int)")
    before = app_test.everything(other)
    scene.start("--tb=short", test=BEFORE + WAITS + AFTER)
    scene.hanging()
    app_test.relay.lead_to(other.place)
    scene.tell("go")
    output = scene.end()
    pytest.LineMatcher(output.splitlines()).fnmatch_lines(
        [
            "E *LeaseLost: the schemas of test_it.py::test_waits were lost: *",
            f"the schemas of 'users', 'orders' could not be made: {app_test.relay.place} does not lead to where it"
            ' led when the run began, database "app_test" (*), but to database "app_test" (*); nothing was written *',
            "  to mend it: give a URL that leads to one database for as long as the run lasts, and run the tests again",
        ]
    )
    assert counted(output) == {"passed": 1, "failed": 1, "error": 2}, output
    assert app_test.everything(other) == before
    scene.project.url = app_test.first.url
    scene.nothing_is_left()
