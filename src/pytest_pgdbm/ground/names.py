"""The one place that makes and recognises the names the plugin gives to things on a server, and quotes them.

A schema is called `pgdbm_<run>_<worker>_<number>_<service>`: lower-case ASCII, at most 63 bytes, as PostgreSQL
and pgdbm (`^[a-zA-Z_][a-zA-Z0-9_]{0,62}$`, tracking table unquoted) both allow. What was lost from the service's
name on the way is made up for by the number, which no two schemas of a worker share.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

PREFIX = "pgdbm"
MAX_BYTES = 63
"""The longest identifier PostgreSQL keeps: https://www.postgresql.org/docs/current/sql-syntax-lexical.html"""

_STEM = rf"{PREFIX}_(?P<run>[0-9a-f]{{10}})_(?P<worker>[a-z0-9]{{1,12}})"
_NUMBER = r"(?P<number>0|[1-9][0-9]*)"
_SCHEMA = rf"{_STEM}_{_NUMBER}_(?P<service>[a-z0-9]+(?:_[a-z0-9]+)*_?)"
_PLAIN = r"[a-z_][a-z0-9_]*"
_DATABASE = rf"{_STEM}(?:_{_NUMBER})?"


class SchemaName(NamedTuple):
    """A schema name taken apart. `service` is what was kept of the service's name."""

    run: str
    worker: str
    number: int
    service: str

    def __str__(self) -> str:
        """The name put together again."""
        return f"{PREFIX}_{self.run}_{self.worker}_{self.number}_{self.service}"


class DatabaseName(NamedTuple):
    """The name of a set's database taken apart."""

    run: str
    worker: str
    number: int


def new_run() -> str:
    """A name for a run that no other run has: ten random hexadecimal digits."""
    return os.urandom(5).hex()


def worker_name(worker: str) -> str:
    """The worker's id as it stands in names: `gw0`, or `main` without xdist; letters and digits only, at most 12."""
    return re.sub(r"[^a-z0-9]", "", worker.lower())[:12] or "main"


def schema_name(service: str, *, run: str, worker: str, number: int) -> str:
    """The name of the throw-away schema that stands for `service`, whatever characters that has."""
    stem = f"{PREFIX}_{run}_{worker_name(worker)}_{number}_"
    return stem + identifier(service)[: MAX_BYTES - len(stem)]


def parse_schema(name: str) -> SchemaName | None:
    """What a schema name says, or None if `schema_name` did not make it."""
    match = re.fullmatch(_SCHEMA, name)
    if match is None or len(name) > MAX_BYTES:
        return None
    return SchemaName(match["run"], match["worker"], int(match["number"]), match["service"])


def real_name(service: str) -> str:
    """The name of the schema that a service has in production, and in a database of its own.

    That is the service's name, where it is a plain lower-case identifier. Others are written as one: `Order-Items` as
    `order_items`, `1st` as `_1st`; the server keeps names that begin with `pg_` for itself.
    """
    name = service if re.fullmatch(_PLAIN, service, re.ASCII) else identifier(service)
    return (f"_{name}" if name[0].isdigit() or name.startswith("pg_") else name)[:MAX_BYTES]


def database_name(*, run: str, worker: str, number: int | None = None) -> str:
    """The name of a worker's own database, on a server that the plugin started; with a number, of one of its sets."""
    return f"{PREFIX}_{run}_{worker_name(worker)}" + ("" if number is None else f"_{number}")


def parse_database(name: str) -> DatabaseName | None:
    """What the name of a set's database says, or None if `database_name` did not make it with a number."""
    match = re.fullmatch(_DATABASE, name)
    if match is None or match["number"] is None:
        return None
    return DatabaseName(match["run"], match["worker"], int(match["number"]))


def is_ours(database: str) -> bool:
    """Whether `database_name` made this name."""
    return re.fullmatch(_DATABASE, database) is not None


def application_name(*, run: str, worker: str, part: str) -> str:
    """What `pg_stat_activity` shows for a connection of the plugin; ASCII, at most 63 bytes."""
    return f"{PREFIX} {run} {worker_name(worker)} {part}"[:MAX_BYTES]


def identifier(service: str) -> str:
    """The service's name as a plain identifier: `Order-Items` becomes `order_items`; never empty."""
    return re.sub(r"[^a-z0-9]+", "_", service.lower()).strip("_") or "service"


def quote_ident(name: str) -> str:
    """`name` as a quoted SQL identifier.

    Raises ValueError for a NUL character, which PostgreSQL cannot hold in any text.
    """
    if "\0" in name:
        raise ValueError("an SQL identifier cannot hold a NUL character")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """`text` as an SQL string literal, whatever `standard_conforming_strings` says."""
    if "\0" in text:
        raise ValueError("an SQL literal cannot hold a NUL character")
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted
