"""Where a migration or seed failed, and how that is told: file, line, the server's own words."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg

from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas.watched import Spot
from pytest_pgdbm.sql.lexer import Statement, holds_statement, statements, tokens
from pytest_pgdbm.sql.lexer import line_of as line_at

_IN_TRANSACTION = "cannot run inside a transaction block"
_NO_TRANSACTION = (
    "give what cannot run in a transaction a file of its own, with the line '-- pgdbm:no-transaction': pgdbm sends the"
    " statements of such a file one by one, in no transaction"
)
_ONLY_A_COMMENT = (
    "pgdbm sends what stands after the last ';' of a file with '-- pgdbm:no-transaction' by itself, and a comment by"
    " itself cannot be executed; move it before the statement"
)
_IN_DO_BLOCK = re.compile(r"inline_code_block line (\d+)")


async def line_of(connection: asyncpg.Connection, spot: Spot, error: BaseException | None) -> int | None:
    """The line of the file that failed, 1-based; None if that cannot be told.

    The server gives a position for what it could not parse or find. For the rest the statements of the file are
    played again one by one, in a transaction that is rolled back.
    """
    if not spot.statement or not isinstance(error, asyncpg.PostgresError):
        return None
    position = getattr(error, "position", None)
    if position:
        return line_at(spot.text, spot.start + int(position) - 1)
    if spot.statement == spot.text:
        return await _replayed(connection, spot.text, error)
    alone = statements(spot.statement)
    return line_at(spot.text, spot.start) + _line_inside(alone[0], error) - 1 if alone else None


async def _replayed(connection: asyncpg.Connection, text: str, expected: asyncpg.PostgresError) -> int | None:
    if connection.is_closed():
        return None
    # Not asyncpg's transaction: a statement of the file may end it.
    await connection.execute("rollback; begin" if connection.is_in_transaction() else "begin")
    try:
        for statement in statements(text):
            try:
                await connection.execute(statement.text)
            except asyncpg.PostgresError as error:
                return _line_inside(statement, error) if error.sqlstate == expected.sqlstate else None
    finally:
        if connection.is_in_transaction():
            await connection.execute("rollback")
    return None


def _line_inside(statement: Statement, error: asyncpg.PostgresError) -> int:
    """The line of the statement; in a DO block, the line that the server counts in its body."""
    block = _IN_DO_BLOCK.search(getattr(error, "context", None) or "")
    body = next((token for token in tokens(statement.text) if token.kind == "dollar"), None)
    if block is None or body is None:
        return statement.line
    # PL/pgSQL counts from the line of the opening quotes.
    return statement.line + line_at(statement.text, body.start) - 1 + int(block[1]) - 1


def migration(service: str, spot: Spot, line: int | None, error: BaseException, timeout: float | None) -> str:
    """The whole message for a migration that failed; `timeout` is how many seconds it was given."""
    head = f"a migration of service {service!r} failed\n{_where(spot.file.path if spot.file else None, line)}"
    if isinstance(error, asyncio.TimeoutError):
        return f"{head}  it took longer than the {timeout:g} seconds that pgdbm_migration_timeout gives a migration"
    if spot.statement and not holds_statement(spot.statement):
        return f"{head}  {_ONLY_A_COMMENT}"
    if isinstance(error, asyncpg.ActiveSQLTransactionError) and _IN_TRANSACTION in str(error):
        return f"{head}{_said(error)}\n  to mend it: {_NO_TRANSACTION}"
    return head + _said(error)


def seed(service: str, path: Path | None, line: int | None, error: BaseException, what: str = "") -> str:
    """The whole message for a seed that failed."""
    return f"a seed of service {service!r} failed{what}\n{_where(path, line)}{_said(error)}"


def _where(path: Path | None, line: int | None) -> str:
    if path is None:
        return ""
    return f"  {path}" + (f", line {line}" if line else "") + "\n"


def _said(error: BaseException) -> str:
    said = str(error)
    kind = type(error).__name__
    if getattr(error, "severity", None):  # asyncpg raises some of the server's errors itself
        kind = "the server says"
        context = getattr(error, "context", None)
        said += f"\nCONTEXT:  {context}" if context else ""
    return f"  {kind}: " + masked(said).replace("\n", "\n    ")
