"""A home that gives each set a database: what is leased again is what was leased first, anywhere in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import asyncpg
import pytest
from databases import connected
from equality.dumps import Observer
from pg_dump import dump, dumps_differ
from workshop import Workshop

from pytest_pgdbm import BuildError, Service
from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.budget import Budget
from pytest_pgdbm.connections.crowd import Crowd
from pytest_pgdbm.connections.opening import PGDBM_PATH, Opening
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.pool_set import Pools
from pytest_pgdbm.connections.pools import SharedPool
from pytest_pgdbm.connections.seats import Seats
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.leasing.resolver import Library, Resolver
from pytest_pgdbm.schemas.database_home import DatabaseHome
from pytest_pgdbm.schemas.plan import BuiltSet, Plan
from pytest_pgdbm.schemas.site import Common

DEPOT = """
create table depot.parts (id serial primary key, name text not null unique);
comment on schema depot is 'what we have';
create schema audit;
create table audit.log (id int generated always as identity, what text);
create table public.settings (key text primary key, value text);
insert into public.settings values ('currency', 'EUR'), ('country', 'AT');
insert into depot.parts (name) select 'part ' || n from generate_series(1, 300) n;
create function depot.note() returns trigger language plpgsql as
    $$ begin insert into audit.log (what) values (new.name); return new; end $$;
create trigger note after insert on depot.parts for each row execute function depot.note();
do $$ begin execute format('alter database %I set work_mem = ''12MB''', current_database()); end $$;
"""

SHOP = """
create table shop.orders (id serial primary key, part int not null references depot.parts on delete cascade);
create materialized view shop.summary as select count(*) as orders from shop.orders;
"""

PROGRAMS = {
    "nothing": "",
    "rows": "insert into depot.parts (name) values ('a'); insert into shop.orders (part) values (301), (1);",
    "elsewhere": "insert into audit.log (what) values ('x'); update public.settings set value = 'CHF'; "
    "delete from public.settings where key = 'country'",
    "much": "insert into depot.parts (name) select 'more ' || n from generate_series(1, 20000) n;"
    "insert into shop.orders (part) select id from depot.parts; refresh materialized view shop.summary",
    "undone": "begin; create schema more; drop table public.settings; rollback",
    "analyzed": "vacuum full depot.parts; analyze",
    "gone": "truncate depot.parts cascade; truncate audit.log restart identity;select setval('shop.orders_id_seq', 99)",
}

CHANGES = {
    "a schema": ("create schema more", "new: schema more"),
    "a column elsewhere": ("alter table audit.log add column more int", "new: column audit.log.more"),
    "a comment": ("comment on schema depot is 'all gone'", "changed: comment on schema depot"),
    "a setting": (
        "do $$ begin execute format('alter database %I set work_mem = 64', current_database()); end $$",
        "changed: settings for all",
    ),
    "an extension": ("create extension citext", "new: "),
}


class Homes:
    """Database homes in a workshop's server, and what a superuser sees in their databases."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.pools = Pools("it", Seats(Crowd(workshop.own), 40))

    @asynccontextmanager
    async def home(self, *, own: bool, url: str | None = None) -> AsyncIterator[DatabaseHome]:
        workshop = self.workshop
        endpoint = workshop.own if own else await workshop.by_url(url or workshop.url)
        path = SearchPath.parse(None)
        common = Common(endpoint, workshop.run, path, path.for_pool(PGDBM_PATH), None, frozenset())

        def open_pool(database: str) -> SharedPool:
            name = common.application("pool")
            return self.pools.add(Opening(endpoint, database, application_name=name, path=path, size=4, options={}))

        admin = Admin(endpoint, endpoint.database, application_name=common.application("admin"), path=common.pinned)
        home = DatabaseHome(common, self.pools, open_pool, Budget(4, 3, 2, 40), admin)
        try:
            yield home
        finally:
            await home.close()
            await admin.close()

    def plan(self, *names: str, **services: Service) -> Plan:
        folder = self.workshop.folder
        resolver = Resolver(
            Library(),
            test_file=folder / "test_it.py",
            rootdir=folder,
            offered=services,
            declarations=[],
            seeds={},
        )
        return resolver.ask_database(names).plan

    def shop(self) -> Plan:
        depot, shop = self.workshop.service("depot", DEPOT), self.workshop.service("shop", SHOP)
        return self.plan(depot=depot, shop=shop)

    @asynccontextmanager
    async def looking(self, built: BuiltSet) -> AsyncIterator[tuple[asyncpg.Connection, Observer]]:
        own = self.workshop.own
        async with connected(login.dsn(own, built.database, own.admin)) as connection:
            names = ("depot", "shop", "audit", "public")
            yield connection, await Observer.of(connection, dict(zip(names, names, strict=True)))

    async def dump(self, built: BuiltSet) -> str:
        text = await dump(self.workshop.own, built.database, {})
        async with connected(self.workshop.url) as connection:
            there = "select count(*) from pg_stat_activity where application_name = 'pg_dump' and datname = $1"
            while await connection.fetchval(there, built.database):
                await asyncio.sleep(0.01)
        return text

    async def databases(self) -> list[str]:
        async with connected(self.workshop.url) as connection:
            query = "select datname from pg_database where datname like $1"
            return [row["datname"] for row in await connection.fetch(query, f"pgdbm_{self.workshop.run.id}_%")]


@pytest.fixture
def homes(workshop: Workshop) -> Iterator[Homes]:
    homes = Homes(workshop)
    yield homes
    homes.pools.end()


@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_what_is_leased_again_is_what_was_leased_first(homes: Homes, own: bool) -> None:
    async def go() -> None:
        async with homes.home(own=own) as home:
            built = await home.build(homes.shop(), ())
            await home.settle_in(built)
            async with homes.looking(built) as (_, observer):
                first = await observer.image()
            dumped = await homes.dump(built)
            assert "what we have" in dumped
            assert "pytest-pgdbm" not in dumped
            for name, program in PROGRAMS.items():
                async with connected(home.managers(built, Term("it"), built.schemas)["shop"].dsn) as connection:
                    for statement in filter(None, program.split(";")):
                        await connection.execute(statement)
                recycled = await home.recycle(built)
                if name == "gone" and not own:
                    assert recycled.why.endswith("a trigger would fire if they were put back")
                    break
                assert (name, recycled.why, recycled.holders) == (name, "", [])
                async with homes.looking(built) as (_, observer):
                    assert (name, await observer.differences(first)) == (name, [])
                assert dumps_differ(dumped, await homes.dump(built)) == []
            assert await home.drop([built]) == ([], [])
        assert await homes.databases() == []

    asyncio.run(go())


@pytest.mark.parametrize(("change", "why"), CHANGES.values(), ids=CHANGES)
def test_what_is_otherwise_anywhere_in_the_database_is_found(homes: Homes, change: str, why: str) -> None:
    async def go() -> None:
        async with homes.home(own=True) as home:
            built = await home.build(homes.shop(), ())
            await home.settle_in(built)
            async with homes.looking(built) as (connection, _):
                await connection.execute(change)
            assert (await home.recycle(built)).why.startswith(why)
            assert await home.drop([built]) == ([], [])

    asyncio.run(go())


def test_a_further_set_is_replayed_and_is_the_same(homes: Homes) -> None:
    async def go() -> None:
        async with homes.home(own=True) as home:
            one = await home.build(homes.shop(), ())
            assert home._common.contents.recordings.get(one.plan) is not None
            two = await home.build(one.plan, ())
            dumps = [(await homes.dump(each)).replace(each.database, "it") for each in (one, two)]
            assert dumps_differ(*(_without_times(text) for text in dumps)) == []
            assert one.schemas == two.schemas == {"depot": "depot", "shop": "shop"}
            assert await home.drop([one, two]) == ([], [])

    asyncio.run(go())


def _without_times(text: str) -> str:
    """pgdbm notes when a migration was applied."""
    lines = text.splitlines()
    return "\n".join(line for line in lines if "001.sql" not in line)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_build_that_does_not_come_to_its_end_leaves_no_database(homes: Homes, how: str) -> None:
    services: Mapping[str, Service] = {
        "slow": homes.workshop.service("slow", "select pg_sleep(60);" if how == "cancelled" else "select 1/0;")
    }

    async def go() -> None:
        async with homes.home(own=False) as home:
            building = asyncio.ensure_future(home.build(homes.plan(**services), ()))
            if how == "failed":
                with pytest.raises(BuildError, match="division by zero"):
                    await building
            else:
                async with connected(homes.workshop.url) as connection:
                    while not await connection.fetchval(
                        "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname like $1",
                        f"pgdbm_{homes.workshop.run.id}_%",
                    ):
                        assert not building.done()
                        await asyncio.sleep(0.01)
                for _ in range(3):
                    building.cancel()
                    await asyncio.sleep(0)
        assert await homes.databases() == []

    asyncio.run(go())


def test_a_home_is_full_when_the_budget_is_used_up(homes: Homes) -> None:
    async def go() -> None:
        plan = homes.plan(users=homes.workshop.service("users", "create table {{tables.t}} (id int);"))
        async with homes.home(own=True) as home:
            built = []
            for full in (False, False, True):
                built.append(await home.build(plan, ()))
                assert home.is_full is full
            assert await home.drop(built[:1]) == ([], [])
            assert not home.is_full
            assert await home.drop(built[1:]) == ([], [])

    asyncio.run(go())
