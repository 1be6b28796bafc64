import asyncio
import logging
from contextlib import AsyncExitStack

from pgdbm import MonitoredAsyncDatabaseManager
from pool_health import PoolHealth, check_pool


async def test_an_idle_pool(readings_db):
    await readings_db.fetch_value("SELECT 1")
    assert await check_pool(readings_db) == PoolHealth(total=2, active=0, idle=2, limit=6)


async def test_a_busy_pool_is_logged(readings_db, caplog):
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(readings_db.acquire())
        with caplog.at_level(logging.WARNING):
            health = await check_pool(readings_db)
    assert (health.active, health.limit) == (5, 6)
    assert caplog.messages == ["High pool usage: 83.3%"]


async def test_an_exhausted_pool_makes_the_next_one_wait(sensors_db):
    async with AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(sensors_db.acquire())
        waiting = asyncio.create_task(sensors_db.fetch_value("SELECT 'at last'"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
    assert await waiting == "at last"


async def test_all_services_share_the_pool_that_is_watched(sensors_db, readings_db):
    async with sensors_db.acquire():
        assert (await check_pool(readings_db)).active == 1


async def test_queries_of_a_monitored_manager_are_counted(readings_db):
    monitored = MonitoredAsyncDatabaseManager(pool=readings_db.pool, schema=readings_db.schema)
    for value in (19.5, 21.0, 20.25):
        await monitored.execute("INSERT INTO {{tables.readings}} (sensor_id, value) VALUES (1, $1)", value)
    totals = await monitored.fetch_one("SELECT count, highest FROM {{tables.totals}}")
    assert totals == {"count": 3, "highest": 21.0}
    metrics = await monitored.get_metrics()
    assert (metrics.queries_failed, metrics.pool_max) == (0, 6)
    assert metrics.queries_executed >= 4
