"""One application for the whole run, databases of each test's own by dependency injection."""

import pytest


async def test_create_user(client, users_db):
    response = await client.post("/users", params={"email": "ada@example.org"})
    assert (response.status_code, response.json()) == (201, {"id": 2})
    assert await users_db.fetch_value("SELECT email FROM {{tables.users}} WHERE id = 2") == "ada@example.org"


async def test_an_address_is_taken_however_it_is_capitalised(client):
    response = await client.post("/users", params={"email": "GUEST@example.org"})
    assert response.status_code == 409


@pytest.mark.parametrize("name", ["ada", "grace"])
async def test_no_test_sees_the_users_of_another(client, name):
    await client.post("/users", params={"email": f"{name}@example.org"})
    assert (await client.get("/users")).json() == ["guest@example.org", f"{name}@example.org"]


async def test_orders_refer_to_users(client):
    assert (await client.post("/orders", params={"user": 1, "quantity": 10})).status_code == 201
    refused = await client.post("/orders", params={"user": 1, "quantity": 1})
    assert (refused.status_code, refused.json()) == (422, {"detail": "more than ten for one user"})
    nobody = await client.post("/orders", params={"user": 99, "quantity": 1})
    assert nobody.status_code == 422
    assert "violates foreign key constraint" in nobody.json()["detail"]
