"""The store over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, HTTPException
from pgdbm.errors import QueryError

from store.databases import Databases, OrdersDB, UsersDB, connect, migrate


def create_app(connect: Callable[[], AbstractAsyncContextManager[Databases]] = connect) -> FastAPI:
    """The application; at start-up it opens its databases and migrates them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect() as app.state.dbs:
            app.state.migrated = await migrate(app.state.dbs)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/users", status_code=201)
    async def create_user(email: str, db: UsersDB) -> dict[str, int]:
        sql = "INSERT INTO {{tables.users}} (email) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id"
        user = await db.fetch_value(sql, email)
        if user is None:
            raise HTTPException(409, f"{email} is taken")
        return {"id": user}

    @app.get("/users")
    async def list_users(db: UsersDB) -> list[str]:
        return [row["email"] for row in await db.fetch_all("SELECT email FROM {{tables.users}} ORDER BY id")]

    @app.post("/orders", status_code=201)
    async def place_order(user: int, quantity: int, db: OrdersDB) -> dict[str, int]:
        sql = "INSERT INTO {{tables.orders}} (user_id, quantity) VALUES ($1, $2) RETURNING id"
        try:
            return {"id": await db.fetch_value(sql, user, quantity)}
        except QueryError as refused:
            raise HTTPException(422, str(refused.__cause__)) from refused

    return app
