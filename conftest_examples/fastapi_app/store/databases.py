"""The databases of the store, and how a route gets them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager, DatabaseConfig, SchemaManager

MIGRATIONS = Path(__file__).parent.parent / "migrations"
Databases = dict[str, AsyncDatabaseManager]


@asynccontextmanager
async def connect() -> AsyncIterator[Databases]:
    """The managers of all services on one shared pool, as in production."""
    config = DatabaseConfig(connection_string=os.environ["DATABASE_URL"], shared_pool_search_path="pg_catalog, public")
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    try:
        yield {name: AsyncDatabaseManager(pool=pool, schema=name) for name in ("users", "orders")}
    finally:
        await pool.close()


async def migrate(databases: Databases) -> dict[str, Any]:
    """Brings every service up to date; returns pgdbm's report for each."""
    reports = {}
    for database in databases.values():
        await SchemaManager(database).ensure_schema_exists()
    for name, database in databases.items():
        migrations = AsyncMigrationManager(database, migrations_path=str(MIGRATIONS / name), module_name=name)
        reports[name] = await migrations.apply_pending_migrations()
    return reports


async def get_users_db(request: Request) -> AsyncDatabaseManager:
    return request.app.state.dbs["users"]


async def get_orders_db(request: Request) -> AsyncDatabaseManager:
    return request.app.state.dbs["orders"]


UsersDB = Annotated[AsyncDatabaseManager, Depends(get_users_db)]
OrdersDB = Annotated[AsyncDatabaseManager, Depends(get_orders_db)]
