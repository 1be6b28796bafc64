from decimal import Decimal

from shop.orders import place_order, request_payment

from pytest_pgdbm import Database, pgdbm_db


async def load_payments(db: Database) -> None:
    """A seed can be code of the application: one order of the second user, not yet paid."""
    order = await place_order(db.sibling("orders"), 2, {"nanosecond": Decimal("11.80")})
    await request_payment(db, order)


users_db = pgdbm_db("users", seed="seeds/users.sql")
orders_db = pgdbm_db(
    "orders", seed={"orders": [{"user_id": 1}], "items": [{"order_id": 1, "name": "gear", "price": 4}]}
)
payments_db = pgdbm_db("payments", seed=load_payments)
