"""Engines that are right by brute force, or wrong on purpose: to see that the tests see what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equality.ground import Ground

from pytest_pgdbm.schemas.plan import BuiltSet

_RELATIONS = """
select c.oid, c.oid::regclass::text as name, c.relkind::text as kind, (
    select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
    where attrelid = c.oid and attnum > 0 and attgenerated = '' and not attisdropped
) as columns
from pg_class c where relkind in ('r', 'S') and relnamespace::regnamespace::text = any($1)
"""


@dataclass(frozen=True)
class Given:
    """An outcome."""

    why: str = ""


class ByCopy:
    """Right: has the whole database copied anew."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    async def settle_in(self, built: BuiltSet) -> None:
        """It is, as it was built."""

    async def recycle(self, built: BuiltSet) -> Given:
        """Always the same."""
        await self.ground.restore()
        return Given()


class Careless:
    """Wrong: deletes rows, inserts the first ones again and sets sequences back, and looks at nothing else."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.statements: Sequence[str] = ()

    async def settle_in(self, built: BuiltSet) -> None:
        """Notes rows and sequences."""
        connection = self.ground.superuser
        await connection.execute("drop schema if exists kept cascade; create schema kept")
        rows = await connection.fetch(_RELATIONS, list(built.schemas.values()))
        statements = ["set session_replication_role = replica"]
        for row in rows:
            if row["kind"] == "S":
                value, called = await connection.fetchrow(f"select last_value, is_called from {row['name']}")
                statements.append(f"select setval({row['oid']}::regclass, {value}, {called})")
                continue
            statements.append(f"delete from only {row['name']}")
            if row["columns"]:
                await connection.execute(f"create table kept.t{row['oid']} as select * from only {row['name']}")
                statements.append(
                    f"insert into {row['name']} ({row['columns']}) overriding system value"
                    f" select {row['columns']} from kept.t{row['oid']}"
                )
        self.statements = [*statements, "reset session_replication_role"]

    async def recycle(self, built: BuiltSet) -> Given:
        """Hopes for the best."""
        await self.ground.superuser.execute("; ".join(self.statements))
        return Given()
