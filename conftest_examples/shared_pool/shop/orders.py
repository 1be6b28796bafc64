"""Placing orders and paying for them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pgdbm import AsyncDatabaseManager


async def place_order(db: AsyncDatabaseManager, user: int, items: Mapping[str, Decimal]) -> int:
    """The id of a new order; all of it or nothing."""
    async with db.transaction() as tx:
        order = await tx.fetch_value("INSERT INTO {{tables.orders}} (user_id) VALUES ($1) RETURNING id", user)
        for name, price in items.items():
            sql = "INSERT INTO {{tables.items}} (order_id, name, price) VALUES ($1, $2, $3)"
            await tx.execute(sql, order, name, price)
    return order


async def request_payment(db: AsyncDatabaseManager, order: int) -> dict[str, Any]:
    """A new payment of what the order costs."""
    payment = await db.fetch_one(
        """
        INSERT INTO {{tables.payments}} (order_id, amount)
        SELECT id, total FROM {{tables.orders.orders}} WHERE id = $1
        RETURNING *
        """,
        order,
    )
    if payment is None:
        raise LookupError(f"there is no order {order}")
    return payment


async def pay(db: AsyncDatabaseManager, payment: int) -> bool:
    """Whether the payment was open and is paid now."""
    sql = "UPDATE {{tables.payments}} SET state = 'paid' WHERE id = $1 AND state = 'open'"
    return await db.execute(sql, payment) == "UPDATE 1"
