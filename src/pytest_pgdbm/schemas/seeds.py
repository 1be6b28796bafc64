"""Seeds: rows, SQL files and functions that fill a service's tables after its migrations."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.hints import explain
from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.ground.errors import LeaseLost, NoConnection, SeedError
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.schemas import failures
from pytest_pgdbm.schemas.watched import Builder, Spot
from pytest_pgdbm.services.files import read_seed
from pytest_pgdbm.sql.lexer import holds_statement


async def sow(builder: Builder, service: str, seeds: Sequence[Any], database: Database) -> None:
    """Plants the seeds of one service, in their order.

    Files and rows go over the builder's connection, each in a transaction; a function gets `database`, a manager like
    that of a test. Raises SeedError with the file and line, the table and row, or the function and line.
    """
    for seed in seeds:
        if callable(seed):
            await _call(service, seed, database)
        elif isinstance(seed, Mapping):
            await _insert(builder, service, seed)
        else:
            await _run(builder, service, Path(seed))


async def _run(builder: Builder, service: str, path: Path) -> None:
    text = builder.prepare_query(read_seed(path, service).text)
    if not holds_statement(text):
        return  # asyncpg cannot execute nothing
    connection = builder.watched.connection
    try:
        async with connection.transaction():
            await connection.execute(text)
    except FAILURES as error:
        if isinstance(error, asyncpg.PostgresError):
            explain(error, builder.names)
        line = await failures.line_of(connection, Spot(None, text, text), error)
        raise SeedError(failures.seed(service, path, line, error)) from error


async def _insert(builder: Builder, service: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    connection = builder.watched.connection
    try:
        async with connection.transaction():
            for table, rows in tables.items():
                # Rows that go to the server together take a twentieth of the time.
                for columns, alike in itertools.groupby(rows, key=tuple):
                    values = [tuple(row.values()) for row in alike]
                    await connection.executemany(_insertion(_target(builder, table), columns), values)
    except FAILURES:
        if connection.is_closed():
            raise
        await _insert_one_by_one(builder, service, tables)


async def _insert_one_by_one(builder: Builder, service: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """For the number of the row that fails."""
    connection = builder.watched.connection
    async with connection.transaction():
        for table, rows in tables.items():
            for number, row in enumerate(rows, start=1):
                try:
                    await connection.execute(_insertion(_target(builder, table), tuple(row)), *row.values())
                except FAILURES as error:
                    what = f", at row {number} of table {table!r}"
                    raise SeedError(failures.seed(service, None, None, error, what)) from error


def _target(builder: Builder, table: str) -> str:
    return builder.prepare_query("{{schema}}") + "." + quote_ident(table)


def _insertion(target: str, columns: Sequence[str]) -> str:
    if not columns:
        return f"insert into {target} default values"
    names = ", ".join(quote_ident(column) for column in columns)
    values = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    return f"insert into {target} ({names}) values ({values})"


async def _call(service: str, function: Any, database: Database) -> None:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    try:
        await function(database)
    except (LeaseLost, NoConnection):
        raise  # whatever the seed does
    except Exception as error:
        path, line = _place_in(function, error)
        raise SeedError(failures.seed(service, path, line, error, f" in {name}()")) from error


def _place_in(function: Any, error: Exception) -> tuple[Path | None, int | None]:
    """Where in the function's own file the error came up."""
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    return (Path(here[-1].filename), here[-1].lineno) if here else (None, None)
