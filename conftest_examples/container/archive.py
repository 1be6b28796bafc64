"""People with passwords, and the documents that are theirs."""

from __future__ import annotations

from uuid import UUID

from pgdbm import AsyncDatabaseManager


async def log_in(db: AsyncDatabaseManager, name: str, secret: str) -> int | None:
    """The person's id, or None if name or secret are wrong."""
    sql = "SELECT id FROM {{tables.people}} WHERE name = $1 AND secret = crypt($2, secret)"
    return await db.fetch_value(sql, name, secret)


async def file_document(db: AsyncDatabaseManager, owner: int, title: str) -> UUID:
    """The id of a new document."""
    sql = "INSERT INTO {{tables.documents}} (owner_id, title) VALUES ($1, $2) RETURNING id"
    return await db.fetch_value(sql, owner, title)
