"""What a user's type checker sees; checked by mypy, not run."""

from __future__ import annotations

import asyncpg
from pgdbm import AsyncDatabaseManager

from pytest_pgdbm import Database, DatabaseFactory, Lease, PgdbmServer, Service, pgdbm_db

users_db = pgdbm_db("users")
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


def records(server: PgdbmServer, database: Database) -> tuple[str, asyncpg.Pool, Database, str]:
    """What the records and the manager give."""
    return server.url, database.pool, database.sibling("orders"), database.dsn


def declared() -> Service:
    """A declaration."""
    return Service("services/users/sql", needs=("orders",), extensions="citext")
