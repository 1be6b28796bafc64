"""What a user's type checker sees; checked by mypy, not run."""

from __future__ import annotations

import asyncpg
from pgdbm import AsyncDatabaseManager

from pytest_pgdbm import (
    Database,
    DatabaseFactory,
    Lease,
    PgdbmServer,
    Service,
    WholeDatabase,
    WholeDatabaseFactory,
    pgdbm_database,
    pgdbm_db,
)

users_db = pgdbm_db("users")
shop_db = pgdbm_database("users", "orders", scope="module")
orders_db = pgdbm_db("orders", migrations="sql", seed=["a.sql", {"orders": [{"id": 1}]}], scope="module")


async def one_service(factory: DatabaseFactory) -> AsyncDatabaseManager:
    """One name gives a manager."""
    users: Database = await factory("users")
    return users


async def several_services(factory: DatabaseFactory) -> tuple[Database, ...]:
    """Several names give a tuple."""
    users, orders = await factory("users", "orders", fresh=True)
    return users, orders


def without_a_loop(factory: DatabaseFactory) -> Database:
    """A synchronous test calls get()."""
    lease: Lease[Database] = factory("users", seed={"users": [{"email": "a@example.org"}]})
    return lease.get()


async def whole(factory: WholeDatabaseFactory) -> tuple[Database, asyncpg.Pool, str, tuple[str, ...]]:
    """A whole database: its managers by name, its pool, URL and services."""
    database: WholeDatabase = await factory("users", "orders", fresh=True)
    lease: Lease[WholeDatabase] = factory()
    return lease.get()["users"], database.pool, database.url, database.services


def records(server: PgdbmServer, database: Database) -> tuple[str, asyncpg.Pool, Database, str]:
    """What the records and the manager give."""
    return server.url, database.pool, database.sibling("orders"), database.dsn


def declared() -> Service:
    """A declaration."""
    return Service("services/users/sql", needs=("orders",), extensions="citext")
