from pgdbm import AsyncDatabaseManager
from shop.databases import SERVICES, migrate


async def test_start_up_finds_every_migration_applied(pgdbm_db):
    databases = dict(zip(SERVICES, await pgdbm_db(*SERVICES), strict=True))
    reports = await migrate(databases)
    assert {name: report["status"] for name, report in reports.items()} == dict.fromkeys(SERVICES, "up_to_date")


async def test_all_services_share_one_pool(pgdbm_db, pgdbm_pool):
    users, orders, payments = await pgdbm_db(*SERVICES)
    assert users.pool is orders.pool is payments.pool is pgdbm_pool
    assert isinstance(users, AsyncDatabaseManager)
