from contextlib import nullcontext

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from store.app import create_app
from store.databases import get_orders_db, get_users_db

from pytest_pgdbm import pgdbm_db

users_db = pgdbm_db("users")
orders_db = pgdbm_db("orders")


@pytest.fixture(scope="session")
def app() -> FastAPI:
    """The application, made once for the whole run."""
    return create_app()


@pytest.fixture
async def client(app, users_db, orders_db):
    """A client of that application, whose routes see this test's databases; no start-up is run."""
    app.dependency_overrides = {get_users_db: lambda: users_db, get_orders_db: lambda: orders_db}
    async with AsyncClient(transport=ASGITransport(app), base_url="http://store") as client:
        yield client
    app.dependency_overrides = {}


@pytest.fixture
def started_app(users_db, orders_db) -> FastAPI:
    """An application that will start up on this test's databases, as it does on its own in production."""
    databases = {"users": users_db, "orders": orders_db}
    return create_app(connect=lambda: nullcontext(databases))
