"""The mark by which a schema or database is known as the plugin's own: its name, and a comment that says the same."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from pytest_pgdbm.ground.names import parse_database, parse_schema

_COMMENT = re.compile(
    r"pytest-pgdbm (?P<kind>schema|database) of run (?P<run>[0-9a-f]{10}),"
    r" process (?P<process>\d+) on (?P<host>\S+)(?:, mark (?P<mark>\d+))?, services? .*",
    re.DOTALL,
)

# What the server puts in the place of a database's limit of connections before it drops it. It stays if the drop is
# interrupted: https://www.postgresql.org/docs/current/catalog-pg-database.html
_HALF_DROPPED = -2


class Said(NamedTuple):
    """What a comment of the plugin's says: of a `schema` or a `database`, by which process of which run and host.

    `mark` is what a database was made with.
    """

    kind: str
    run: str
    process: int
    host: str
    mark: int | None = None


def read(comment: str | None) -> Said | None:
    """What the comment says; None if it is not one of the plugin's."""
    match = _COMMENT.fullmatch(comment or "")
    if match is None:
        return None
    mark = None if match["mark"] is None else int(match["mark"])
    return Said(match["kind"], match["run"], int(match["process"]), match["host"], mark)


class Proof(NamedTuple):
    """What the comment on each schema, or on each set's database, of a run says.

    `earlier` are the runs that have kept schemas for this one, which are its own now.
    """

    run: str
    earlier: frozenset[str] = frozenset()

    def comment(self, service: str) -> str:
        """The comment for the schema of this service."""
        return f"pytest-pgdbm schema of {self._origin()}, service {service!r}"

    def database_comment(self, services: Iterable[str], home: int) -> str:
        """The comment for a database that is these services' alone, made by way of the database with the OID `home`."""
        origin = f"{self._origin()}, mark {database_mark(home)}"
        return f"pytest-pgdbm database of {origin}, services {', '.join(map(repr, services))}"

    def holds(self, schema: str, comment: str | None) -> bool:
        """Whether this run made the schema, or an earlier one for it: name and comment both say so."""
        name = parse_schema(schema)
        return name is not None and name.run in {self.run, *self.earlier} and name.run == _run_said("schema", comment)

    def holds_for_database(self, database: str, comment: str | None, mark: int, home: int) -> bool:
        """The same for a database, by way of the database with the OID `home`: name, mark, and a comment if it has one.

        Whoever dies while a database is made can have no comment put on it, hence the mark.
        """
        name = parse_database(database)
        said = name is not None and _run_said("database", comment) == name.run
        made = name is not None and name.run == self.run and mark_of(mark, comment) == database_mark(home)
        return made and (said or comment is None)

    def _origin(self) -> str:
        return origin(self.run)


def origin(run: str) -> str:
    """Who makes something now, as all comments say it."""
    return f"run {run}, process {os.getpid()} on {socket.gethostname()}"


def database_mark(home: int) -> int:
    """The limit of connections that a database is made with by way of the database with the OID `home`.

    No server lets in as many; so it limits nothing, and nobody else sets it.
    """
    return (1 << 30) + home % (1 << 30)


def mark_of(limit: int, comment: str | None) -> int | None:
    """The mark that a database was made with, by its limit of connections and its comment."""
    said = read(comment)
    return limit if limit != _HALF_DROPPED else said and said.mark


def made_by_a_run(schema: str, comment: str | None) -> bool:
    """Whether any run made the schema, this one or another: name and comment both say so, and of the same run."""
    name = parse_schema(schema)
    return name is not None and name.run == _run_said("schema", comment)


def _run_said(kind: str, comment: str | None) -> str | None:
    said = read(comment)
    return said.run if said is not None and said.kind == kind else None
