"""No isolation at all: pgdbm's pool and one schema, migrated once, for all tests."""

import asyncio

import pytest
import pytest_asyncio
from address import address
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager, DatabaseConfig
from work import LOOP, MIGRATIONS

SCHEMA = "shared"


async def migrate(url):
    config = DatabaseConfig(connection_string=url, min_connections=1, max_connections=5)
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    await pool.execute(f"CREATE SCHEMA {SCHEMA}")
    db = AsyncDatabaseManager(pool=pool, schema=SCHEMA)
    await AsyncMigrationManager(db, str(MIGRATIONS), module_name=SCHEMA).apply_pending_migrations()
    await pool.close()


@pytest.fixture(scope="session")
def migrated(pgdbm_server):
    url = address(pgdbm_server)
    asyncio.run(migrate(url))
    return url


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def pool(migrated):
    config = DatabaseConfig(connection_string=migrated, min_connections=1, max_connections=5)
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    yield pool
    await pool.close()


@pytest.fixture
def db(pool):
    return AsyncDatabaseManager(pool=pool, schema=SCHEMA)
