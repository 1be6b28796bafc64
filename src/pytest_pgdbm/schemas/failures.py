"""Where a migration or seed failed, and how that is told: file, line, the server's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from pgdbm.errors import MigrationError

from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.services.files import SqlFile
from pytest_pgdbm.sql.lexer import line_of as line_at
from pytest_pgdbm.sql.lexer import statements


def file_of(
    error: Exception, result: Mapping[str, Any] | None, files: Sequence[SqlFile]
) -> SqlFile | None:
    """The migration file that failed, by what pgdbm says: 0.5 in the error's details, 0.4 in its result."""
    name = None
    if isinstance(error, MigrationError):
        name = error.details.get("migration_file")
    if name is None and result is not None:
        name = result.get("failed_migration") or result.get("failed")
    return next((file for file in files if file.name == name), None)


async def line_of(
    connection: asyncpg.Connection,
    text: str,
    last: str,
    error: asyncpg.PostgresError | None,
) -> int | None:
    """The line of `text` that failed, 1-based; None if that cannot be told.

    `last` is the statement that was sent last. The server gives a position for what it could not parse or find. For
    the rest the statements are played again one by one, in a transaction that is rolled back.
    """
    start = text.find(last) if last else -1
    if error is None or start < 0:
        return None
    position = getattr(error, "position", None)
    if position:
        return line_at(text, start + int(position) - 1)
    if last != text:  # one statement of a file without transaction
        return line_at(text, start)
    return await _replayed(connection, text)


async def _replayed(connection: asyncpg.Connection, text: str) -> int | None:
    if connection.is_closed():
        return None
    if connection.is_in_transaction():
        await connection.execute("rollback")
    await connection.execute("begin")
    try:
        for statement in statements(text):
            try:
                await connection.execute(statement.text)
            except asyncpg.PostgresError:
                return statement.line
    finally:
        await connection.execute("rollback")
    return None


def migration(service: str, file: SqlFile | None, line: int | None, error: Exception) -> str:
    """The whole message for a migration that failed."""
    return f"a migration of service {service!r} failed\n{_where(file.path if file else None, line)}{_said(error)}"


def seed(service: str, path: Path | None, line: int | None, error: Exception, what: str = "") -> str:
    """The whole message for a seed that failed."""
    return f"a seed of service {service!r} failed{what}\n{_where(path, line)}{_said(error)}"


def _where(path: Path | None, line: int | None) -> str:
    if path is None:
        return ""
    return f"  {path}" + (f", line {line}" if line else "") + "\n"


def _said(error: Exception) -> str:
    kind = "the server says" if isinstance(error, asyncpg.PostgresError) else type(error).__name__
    return f"  {kind}: " + masked(str(error)).replace("\n", "\n    ")
