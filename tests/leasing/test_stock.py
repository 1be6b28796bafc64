"""How many sets of one content there are, and which of them a test gets; on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from workshop import Workshop

from pytest_pgdbm import Database
from pytest_pgdbm.leasing.stock import LEASES_FOR_THREE, LEASES_FOR_TWO, Stock

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
