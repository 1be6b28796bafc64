from decimal import Decimal

import asyncpg
import pytest
from pgdbm.errors import QueryError
from shop.orders import pay, place_order, request_payment


async def test_the_seeds_are_there(users_db, orders_db, payments_db):
    assert await users_db.fetch_value("SELECT count(*) FROM {{tables.users}}") == 2
    totals = await orders_db.fetch_all("SELECT user_id, total FROM {{tables.orders}} ORDER BY id")
    assert totals == [{"user_id": 1, "total": Decimal(4)}, {"user_id": 2, "total": Decimal("11.80")}]
    assert await payments_db.fetch_value("SELECT state FROM {{tables.payments}}") == "open"


async def test_an_order_costs_what_its_items_cost(orders_db):
    order = await place_order(orders_db, 1, {"gear": Decimal("4.50"), "oil": Decimal("0.75")})
    total = "SELECT total FROM {{tables.orders}} WHERE id = $1"
    assert await orders_db.fetch_value(total, order) == Decimal("5.25")
    await orders_db.execute("DELETE FROM {{tables.items}} WHERE name = 'oil'")
    assert await orders_db.fetch_value(total, order) == Decimal("4.50")


async def test_an_order_of_nobody_leaves_nothing(orders_db):
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await place_order(orders_db, 99, {"gear": Decimal(1)})
    assert await orders_db.fetch_value("SELECT count(*) FROM {{tables.orders}}") == 2


async def test_paying(orders_db, payments_db):
    order = await place_order(orders_db, 2, {"moth": Decimal("0.01")})
    payment = await request_payment(payments_db, order)
    assert payment["amount"] == Decimal("0.01")
    assert await pay(payments_db, payment["id"])
    assert not await pay(payments_db, payment["id"])


@pytest.mark.parametrize("attempt", range(3))
async def test_one_open_payment_for_an_order(payments_db, attempt):
    with pytest.raises(QueryError) as refused:
        await request_payment(payments_db, 2)
    assert isinstance(refused.value.__cause__, asyncpg.UniqueViolationError)


@pytest.mark.pgdbm(seed={"payments": ()})
async def test_without_a_payment(pgdbm_db):
    payments_db = await pgdbm_db("payments")
    assert await payments_db.fetch_value("SELECT count(*) FROM {{tables.payments}}") == 0
    assert (await request_payment(payments_db, 1))["amount"] == 4


async def test_handles_are_the_same_in_any_case(users_db):
    find = "SELECT user_id FROM {{tables.profiles}} WHERE handle = $1"
    assert await users_db.fetch_value(find, "COUNTESS") == 1


async def test_a_join_across_services(payments_db):
    email = await payments_db.fetch_value(
        """
        SELECT u.email FROM {{tables.payments}} p
        JOIN {{tables.orders.orders}} o ON o.id = p.order_id
        JOIN {{tables.users.users}} u ON u.id = o.user_id
        """
    )
    assert email == "grace@example.org"
