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


AS_IT_IS = """
select current_setting('session_replication_role'), current_setting('statement_timeout'),
    current_setting('row_security'), session_user
"""


def test_the_role_and_the_settings_are_those_of_the_work_after_any_cancellation(workshop: Workshop) -> None:
    """The server may have done what was cancelled."""
    lends: list[Lend] = [Admin.administrator, Admin.resetter, Admin.tester]

    async def state(admin: Admin, lend: Lend) -> tuple[str, ...]:
        async with lend(admin) as connection:
            return tuple(await connection.fetchrow(AS_IT_IS))

    async def cancelled(admin: Admin, lend: Lend, steps: int) -> None:
        working = asyncio.ensure_future(state(admin, lend))
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001 * (steps % 3))  # so that the server has done it, and its answer is not read
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    async def go() -> None:
        admin = Admin(workshop.own, workshop.database, application_name="it", path=None)
        expected = [await state(admin, lend) for lend in lends]
        assert len(set(expected)) == 3
        for steps in range(40):
            for before in lends:
                for number, lend in enumerate(lends):
                    await state(admin, before)
                    await cancelled(admin, lends[(number + 1) % 3], steps)
                    assert await state(admin, lend) == expected[number]
        await admin.close()

    asyncio.run(go())
