"""The one connection that builds and drops, after work on it was cancelled at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest
from workshop import Workshop

from pytest_pgdbm.connections.admin import Admin

Lend = Callable[[Admin], AbstractAsyncContextManager[asyncpg.Connection]]


async def in_a_transaction(connection: asyncpg.Connection) -> int:
    await connection.execute("select")
    assert not connection.is_in_transaction()
    async with connection.transaction():
        return await connection.fetchval("select 1")


@pytest.mark.parametrize("lend", [Admin.administrator, Admin.resetter, Admin.tester], ids=lambda lend: lend.__name__)
def test_a_transaction_that_was_cancelled_at_any_moment_is_over_for_who_comes_next(
    workshop: Workshop, lend: Lend
) -> None:
    """With a set of steps of the loop between: in the login, in BEGIN, in the statement, in COMMIT."""

    async def work(admin: Admin) -> int:
        async with lend(admin) as connection:
            return await in_a_transaction(connection)

    async def go() -> None:
        admin = Admin(await workshop.by_url(workshop.url), workshop.database, application_name="it", path=None)
        assert await work(admin) == 1
        cancelled = 0
        for steps in range(60):
            working = asyncio.ensure_future(work(admin))
            for _ in range(steps):
                await asyncio.sleep(0)
            working.cancel()
            cancelled += (await asyncio.gather(working, return_exceptions=True)) != [1]
            assert await work(admin) == 1
        assert cancelled > 5
        await admin.close()

    asyncio.run(go())
