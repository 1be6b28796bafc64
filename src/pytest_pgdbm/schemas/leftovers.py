"""What carries the plugin's mark in a database and beside it: whose it is, and what of it could be swept."""

from __future__ import annotations

from typing import Literal, NamedTuple

import asyncpg

from pytest_pgdbm.ground.names import parse_database, parse_schema
from pytest_pgdbm.schemas.proof import Proof

_SCHEMAS = """
select n.nspname as name, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment
from pg_catalog.pg_namespace n where n.nspname ~ '^pgdbm_[0-9a-f]{10}_'
order by n.oid
"""
_DATABASES = """
select d.datname as name, pg_catalog.shobj_description(d.oid, 'pg_database') as comment, d.datconnlimit as mark,
    (select oid from pg_catalog.pg_database where datname = current_database()) as home
from pg_catalog.pg_database d where d.datname ~ '^pgdbm_[0-9a-f]{10}_'
order by d.oid
"""


class Leftover(NamedTuple):
    """A schema of this database, or a database that was made by way of it, and the process that made it."""

    kind: Literal["schema", "database"]
    name: str
    run: str
    worker: str


async def find(connection: asyncpg.Connection) -> list[Leftover]:
    """All that the plugin made here and can prove it made, of living runs too; the oldest first."""
    found: list[Leftover] = []
    for row in await connection.fetch(_SCHEMAS):
        schema = parse_schema(row["name"])
        if schema is not None and Proof(schema.run).holds(row["name"], row["comment"]):
            found.append(Leftover("schema", row["name"], schema.run, schema.worker))
    for row in await connection.fetch(_DATABASES):
        database = parse_database(row["name"])
        proof = None if database is None else Proof(database.run)
        if proof is not None and proof.holds_for_database(row["name"], row["comment"], row["mark"], row["home"]):
            found.append(Leftover("database", row["name"], proof.run, database.worker if database else ""))
    return found
