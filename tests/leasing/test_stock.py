"""How many sets of one content there are, and which of them a test gets; on a real server."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from workshop import Workshop, hear

from pytest_pgdbm import Database
from pytest_pgdbm.connections.terms import LOSS, Term
from pytest_pgdbm.leasing.leases import Left, _Together
from pytest_pgdbm.leasing.stock import LEASES_FOR_THREE, LEASES_FOR_TWO, Outcome, Stock
from pytest_pgdbm.schemas.home import Home
from pytest_pgdbm.schemas.plan import BuiltSet
from pytest_pgdbm.schemas.recycling.function import Found

USERS = "create table {{tables.users}} (id serial primary key, email text unique);"


@asynccontextmanager
async def stocked(workshop: Workshop, **options: Any) -> AsyncIterator[Stock]:
    asked = workshop.ask("users", {"users": workshop.service("users", USERS, **options)})
    async with workshop.home() as home:
        stock = Stock(home, asked.plan, asked.others)
        yield stock
        await stock.clear()
    assert await workshop.schemas() == []


async def lease(stock: Stock, times: int) -> None:
    for _ in range(times):
        assert (await stock.give_back(await stock.take())).why == ""


def test_tests_one_after_the_other_share_one_set_until_there_are_enough_of_them(workshop: Workshop) -> None:
    async def work() -> None:
        async with stocked(workshop) as stock:
            await lease(stock, LEASES_FOR_TWO - 1)
            only = await stock.take()
            assert stock.must_build  # nothing else is there, and nothing comes
            await stock.give_back(only)
            second = await stock.take()
            third = await stock.take()
            assert second is only
            assert third is not only
            for built in (second, third):
                await stock.give_back(built)

    asyncio.run(work())


@pytest.mark.parametrize(("leases", "sets"), [(LEASES_FOR_TWO, 2), (LEASES_FOR_THREE, 3)])
def test_after_so_many_leases_others_are_built_ahead(workshop: Workshop, leases: int, sets: int) -> None:
    async def work() -> None:
        async with stocked(workshop) as stock:
            await lease(stock, leases)
            taken = set()
            while not stock.must_build:
                taken.add(await stock.take())
            assert len(taken) == sets
            for built in taken:
                await stock.give_back(built)

    asyncio.run(work())


def test_a_seed_that_is_a_function_never_runs_beside_a_test(workshop: Workshop) -> None:
    ran = []

    async def load(database: Database) -> None:
        ran.append(database)

    async def work() -> None:
        async with stocked(workshop, seed=load) as stock:
            await lease(stock, LEASES_FOR_TWO)
            only = await stock.take()
            assert stock.must_build
            assert len(ran) == 1
            await stock.give_back(only)

    asyncio.run(work())


def test_a_set_that_was_changed_makes_way_for_a_new_one(workshop: Workshop) -> None:
    async def work() -> None:
        async with stocked(workshop) as stock:
            changed = await stock.take()
            async with workshop.superuser() as admin:
                await admin.execute(f"alter table {changed.schemas['users']}.users add column age int")
            outcome = await stock.give_back(changed)
            assert "age" in outcome.why
            built = await stock.take()
            assert await workshop.schemas() == [built.schemas["users"]]
            assert built.schemas != changed.schemas
            await stock.give_back(built)

    asyncio.run(work())


WITH_EPOLL = pytest.mark.skipif(not hasattr(select, "epoll"), reason="without epoll nothing is begun")
WROTE = "insert into {s}.users (email) values ('a')"
CHANGED = "alter table {s}.users add column age int"
DELETED = "delete from {s}.users"


class Begun:
    """A set that was leased once before, and is on its way back by messages after this work in it."""

    def __init__(self, stock: Stock) -> None:
        self.stock = stock
        self.tasks: list[asyncio.Task[Outcome]] = []
        self.told = 0

    async def begin(self, workshop: Workshop, statement: str) -> BuiltSet:
        await lease(self.stock, 1)
        built = await self.stock.take()
        async with workshop.superuser() as admin:
            await admin.execute(statement.format(s=built.schemas["users"]))
        loop, over = asyncio.get_running_loop(), time.monotonic()

        def came(as_it_was: bool, found: Found | None) -> None:
            self.told += 1
            if not as_it_was:
                loop.call_soon_threadsafe(lambda: self.tasks.append(self.stock.give_back(built, over, found)))

        assert self.stock.begin(built, over, came)
        assert not self.stock.must_build
        return built


@WITH_EPOLL
@pytest.mark.parametrize(("statement", "same"), [(WROTE, True), (DELETED, True), (CHANGED, False)])
def test_a_set_that_was_begun_is_waited_for(workshop: Workshop, statement: str, same: bool) -> None:
    async def work() -> None:
        async with stocked(workshop, seed={"users": [{"email": "ann"}]}) as stock:
            begun = Begun(stock)
            built = await begun.begin(workshop, statement)
            again = await stock.take()
            assert (again is built) == same
            assert begun.told == 1
            assert await workshop.schemas() == [again.schemas["users"]]
            await stock.give_back(again)

    asyncio.run(work())


@WITH_EPOLL
def test_nobody_waits_for_sets_of_another_content_that_are_on_their_way(workshop: Workshop) -> None:
    async def work() -> None:
        async with two_stocks(workshop) as (home, stocks):
            told: list[str] = []
            sets = [await stock.take() for stock in stocks]
            async with workshop.superuser() as admin:
                for built in sets:
                    await admin.execute(WROTE.format(s=next(iter(built.schemas.values()))))
            for name, stock, built in zip(("first", "second"), stocks, sets, strict=True):
                assert stock.begin(built, time.monotonic(), lambda *_, name=name: told.append(name))
                home.go_on()  # what is sent for the second one is behind what goes on for the first
                if name == "first":
                    hear(home)
            assert await stocks[0].take() is sets[0]
            assert told == ["first"]
            assert await stocks[1].take() is sets[1]
            assert told == ["first", "second"]
            for stock, built in zip(stocks, sets, strict=True):
                await stock.give_back(built)

    asyncio.run(work())


@WITH_EPOLL
@pytest.mark.parametrize("statement", [WROTE, DELETED, CHANGED])
@pytest.mark.parametrize("sent", [True, False], ids=["sent", "not sent"])
def test_what_was_begun_is_over_before_all_is_dropped(workshop: Workshop, statement: str, sent: bool) -> None:
    async def work() -> None:
        async with stocked(workshop, seed={"users": [{"email": "ann"}]}) as stock:
            begun = Begun(stock)
            await begun.begin(workshop, statement)
            if sent:
                stock.home.go_on()
            await stock.finish()
            assert begun.told == 1
            assert [task.done() for task in begun.tasks] in ([], [False])  # on its way, which others can wait for
            assert await stock.clear() == ([], [])
            assert await workshop.schemas() == []
            assert all(task.done() for task in begun.tasks)

    asyncio.run(work())


@WITH_EPOLL
@pytest.mark.parametrize("sent", [True, False], ids=["sent", "not sent"])
def test_what_was_begun_and_lost_is_told_and_not_leased_again(workshop: Workshop, sent: bool) -> None:
    async def work() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", USERS)})
        async with workshop.home() as home:
            stock, lost = Stock(home, asked.plan, asked.others), asyncio.Event()
            home._site.admin.on_loss += [stock.lose, lost.set]
            begun = Begun(stock)
            built = await begun.begin(workshop, WROTE)
            if sent:
                home.go_on()
            async with workshop.superuser() as superuser:
                await superuser.execute(f"select pg_terminate_backend({home._site.admin._pid}, 5000)")
            await asyncio.wait_for(lost.wait(), 30)
            another = await stock.take()
            assert another is not built
            await stock.give_back(another)
            await stock.clear()
            assert begun.told == 1
            assert await workshop.schemas() == [built.schemas["users"]]  # which is others' to sweep

    asyncio.run(work())


@WITH_EPOLL
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "given back"])
def test_what_comes_back_after_all_were_given_up_is_dropped_and_not_leased(workshop: Workshop, begun: bool) -> None:
    """As it may where only the connection has been lost that shows that the process lives."""

    async def work() -> None:
        async with stocked(workshop) as stock:
            coming = Begun(stock)
            if begun:
                built = await coming.begin(workshop, WROTE)
            else:
                built = await stock.take()
                coming.tasks.append(stock.give_back(built))
                await asyncio.sleep(0)
            stock.lose()
            while not coming.tasks:
                await stock.home.finish()
                await asyncio.sleep(0)
            assert (await coming.tasks[0]).why.endswith(LOSS)
            assert built.schemas["users"] not in await workshop.schemas()
            another = await stock.take()
            assert another is not built
            await stock.give_back(another)

    asyncio.run(work())


def test_to_drop_one_those_are_waited_for_that_are_on_their_way(workshop: Workshop) -> None:
    async def work() -> None:
        async with stocked(workshop) as stock:
            stock.give_back(await stock.take())
            assert await stock.drop_one() == ([], [])
            assert await workshop.schemas() == []

    asyncio.run(work())


@WITH_EPOLL
def test_to_drop_one_those_are_waited_for_that_were_begun(workshop: Workshop) -> None:
    async def work() -> None:
        async with stocked(workshop) as stock:
            begun = Begun(stock)
            await begun.begin(workshop, WROTE)
            assert await stock.drop_one() == ([], [])
            assert begun.told == 1
            assert await workshop.schemas() == []

    asyncio.run(work())


@WITH_EPOLL
@pytest.mark.parametrize(
    ("statements", "left"),
    [
        ((WROTE, WROTE), []),
        ((WROTE, CHANGED), [1]),
        ((CHANGED, WROTE), [0]),
        ((CHANGED, DELETED), [0, 1]),
        ((DELETED, CHANGED), [0, 1]),
    ],
)
def test_sets_of_one_test_that_do_not_come_back_by_themselves_go_on_together(
    workshop: Workshop, statements: tuple[str, ...], left: list[int]
) -> None:
    async def work() -> None:
        async with two_stocks(workshop) as (home, stocks):
            sets = [(stock, await stock.take()) for stock in stocks]
            async with workshop.superuser() as admin:
                for (_, built), statement in zip(sets, statements, strict=True):
                    await admin.execute(statement.format(s=next(iter(built.schemas.values()))))
            went_on: list[list[Left]] = []
            _Together(sets, lambda them: went_on.append(list(them))).begin(Term("a test"))
            for _ in ("the function", "its VACUUM"):
                home.go_on()
                hear(home)
            await home.finish()
            assert [sorted(sets.index(each[:2]) for each in them) for them in went_on] == ([left] if left else [])
            for each in [each for them in went_on for each in them]:
                await each.stock.give_back(each.built, found=each.found)

    asyncio.run(work())


@asynccontextmanager
async def two_stocks(workshop: Workshop) -> AsyncIterator[tuple[Home, list[Stock]]]:
    """In one home, with a set in each that was leased before."""
    async with workshop.home() as home:
        stocks = []
        for name in ("users", "others"):
            service = workshop.service(name, USERS, seed={"users": [{"email": "ann"}]})
            asked = workshop.ask(name, {name: service})
            stocks.append(Stock(home, asked.plan, asked.others))
        sets = [await stock.take() for stock in stocks]
        for stock, built in zip(stocks, sets, strict=True):  # after all work that changes the session
            await stock.give_back(built)
        yield home, stocks
        for stock in stocks:
            await stock.clear()
    assert await workshop.schemas() == []
