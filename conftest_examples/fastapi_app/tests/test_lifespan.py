"""The application with its start-up: it migrates its databases itself, and finds that done."""

from httpx import ASGITransport, AsyncClient
from starlette.testclient import TestClient

UP_TO_DATE = {"users": "up_to_date", "orders": "up_to_date"}


def test_with_starlettes_test_client(started_app):
    with TestClient(started_app) as client:
        assert {name: report["status"] for name, report in started_app.state.migrated.items()} == UP_TO_DATE
        assert client.post("/users", params={"email": "ada@example.org"}).json() == {"id": 2}
        assert client.get("/users").json() == ["guest@example.org", "ada@example.org"]


async def test_with_httpx_and_the_lifespan_run_by_hand(started_app, users_db):
    async with (
        started_app.router.lifespan_context(started_app),
        AsyncClient(transport=ASGITransport(started_app), base_url="http://store") as client,
    ):
        assert {name: report["status"] for name, report in started_app.state.migrated.items()} == UP_TO_DATE
        assert (await client.post("/orders", params={"user": 1, "quantity": 3})).json() == {"id": 1}
    assert await users_db.fetch_value("SELECT count(*) FROM {{tables.users}}") == 1
