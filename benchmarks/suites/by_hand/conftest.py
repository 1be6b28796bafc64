"""By hand with pgdbm: a pool for the loop; a schema created, migrated and dropped for each test."""

import uuid

import pytest_asyncio
from address import address
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager, DatabaseConfig
from work import LOOP, MIGRATIONS


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def pool(pgdbm_server):
    config = DatabaseConfig(connection_string=address(pgdbm_server), min_connections=1, max_connections=5)
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    yield pool
    await pool.close()


@pytest_asyncio.fixture(loop_scope=LOOP)
async def db(pool):
    schema = "t_" + uuid.uuid4().hex[:12]
    await pool.execute(f"CREATE SCHEMA {schema}")
    db = AsyncDatabaseManager(pool=pool, schema=schema)
    await AsyncMigrationManager(db, str(MIGRATIONS), module_name=schema).apply_pending_migrations()
    yield db
    await pool.execute(f"DROP SCHEMA {schema} CASCADE")
