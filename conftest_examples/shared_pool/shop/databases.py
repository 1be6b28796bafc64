"""One pool for all services of the shop, and a manager on a schema for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pgdbm import AsyncDatabaseManager, AsyncMigrationManager, DatabaseConfig, SchemaManager

MIGRATIONS = Path(__file__).parent.parent / "migrations"
SERVICES = ("users", "orders", "payments")  # each after those that it refers to


@asynccontextmanager
async def open_databases(url: str) -> AsyncIterator[dict[str, AsyncDatabaseManager]]:
    """The managers of all services, their migrations applied; what the application does at start-up."""
    config = DatabaseConfig(
        connection_string=url,
        min_connections=5,
        max_connections=20,
        shared_pool_search_path="pg_catalog, public",  # the tests say the same in pgdbm_search_path
    )
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    try:
        databases = {name: AsyncDatabaseManager(pool=pool, schema=name) for name in SERVICES}
        for database in databases.values():
            await SchemaManager(database).ensure_schema_exists()
        await migrate(databases)
        yield databases
    finally:
        await pool.close()


async def migrate(databases: Mapping[str, AsyncDatabaseManager]) -> dict[str, Any]:
    """Applies what is not yet applied; returns pgdbm's report for each service."""
    return {
        name: await AsyncMigrationManager(
            database, migrations_path=str(MIGRATIONS / name), module_name=name
        ).apply_pending_migrations()
        for name, database in databases.items()
    }
