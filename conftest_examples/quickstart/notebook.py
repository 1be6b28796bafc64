"""People and their notes: two services, each with a schema of its own."""

from __future__ import annotations

from typing import Any

from pgdbm import AsyncDatabaseManager


async def sign_up(db: AsyncDatabaseManager, email: str) -> int:
    """The id of a new user."""
    sql = "INSERT INTO {{tables.users}} (email) VALUES ($1) RETURNING id"
    return await db.fetch_value(sql, email)


async def find_user(db: AsyncDatabaseManager, email: str) -> dict[str, Any] | None:
    """The user with this address, however it is capitalised."""
    return await db.fetch_one("SELECT * FROM {{tables.users}} WHERE email = $1", email)


async def write_note(db: AsyncDatabaseManager, author: int, text: str) -> int:
    """The id of a new note."""
    sql = "INSERT INTO {{tables.notes}} (author_id, text) VALUES ($1, $2) RETURNING id"
    return await db.fetch_value(sql, author, text)


async def correct_note(db: AsyncDatabaseManager, note: int, text: str) -> dict[str, Any]:
    """The note with its new text; the database notes when that was."""
    sql = "UPDATE {{tables.notes}} SET text = $2 WHERE id = $1 RETURNING *"
    found = await db.fetch_one(sql, note, text)
    if found is None:
        raise LookupError(f"there is no note {note}")
    return found


async def search(db: AsyncDatabaseManager, words: str) -> list[str]:
    """Notes that say something like it, the best first, as `email: text`."""
    rows = await db.fetch_all(
        """
        SELECT u.email || ': ' || n.text AS line
        FROM {{tables.notes}} n JOIN {{tables.users.users}} u ON u.id = n.author_id
        WHERE $1 <% n.text
        ORDER BY word_similarity($1, n.text) DESC, n.id
        """,
        words,
    )
    return [row["line"] for row in rows]
