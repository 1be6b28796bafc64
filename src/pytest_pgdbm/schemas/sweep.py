"""Drops what dead runs have left in a database and beside it.

Who lives holds the lock of its run and its own, or has a session that did: see `connections.registration`. Whoever
sweeps holds the lock of the dead run meanwhile, so that no process of that run can come back. No clock is looked at,
nobody is ended for it, and any number of runs may do this at once. Each schema goes by itself, as a server's lock table
is finite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import asyncpg

from pytest_pgdbm.connections import cluster
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.registration import find_processes
from pytest_pgdbm.ground import locks
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas.drop import Kept, drop, thin_out
from pytest_pgdbm.schemas.leftovers import Leftover, find
from pytest_pgdbm.schemas.proof import Proof

Owner: TypeAlias = "tuple[str, str]"
"""A run, and which of its processes, "" for all of them."""

# A drop locks each of its relations. https://www.postgresql.org/docs/current/runtime-config-locks.html
_IS_LARGE = """
select count(*) > 100 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1
"""

SECONDS_TO_LOCK = 0.2
"""Whoever uses what a dead run has left is not waited for: the next sweep comes by."""


@dataclass
class Swept:
    """What was dropped, what had to stay and why, and which runs are alive.

    `elsewhere` is whether somebody else sweeps, to whom all was left.
    """

    dropped: list[Leftover] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    elsewhere: bool = False


async def sweep(connection: asyncpg.Connection, *, run: str = "", worker: str = "") -> Swept:
    """Drops what dead runs have left, and dead processes of this `run`; its process `worker` is the caller.

    Somebody else who sweeps already is left to it. The session holds no locks but those of that process.
    """
    swept = Swept()
    async with _held(connection, locks.SWEEPING) as mine:
        swept.elsewhere = not mine
        for owner in dict.fromkeys(_owner(each, run) for each in await find(connection)) if mine else ():
            if owner != (run, worker):
                await _sweep_if_dead(connection, owner, swept)
    return swept


def _owner(found: Leftover, run: str) -> Owner:
    return found.run, found.worker if found.run == run else ""


async def _sweep_if_dead(connection: asyncpg.Connection, owner: Owner, swept: Swept) -> None:
    run, worker = owner
    async with _held(connection, locks.of_process(run, worker) if worker else locks.of_run(run)) as dead:
        # Looked for once more: until now somebody could make more of it, or drop it.
        found = [each for each in await find(connection) if each.run == run and worker in ("", each.worker)]
        if not dead or await _has_session(connection, owner):
            swept.alive |= {each.run for each in found}
        elif found:
            await _sweep(connection, found, swept)


async def _has_session(connection: asyncpg.Connection, owner: Owner) -> bool:
    """Whether one of its processes has lost its locks, but not the session that held them."""
    run, worker = owner
    return any(run == each and worker in ("", process) for each, process in await find_processes(connection))


@asynccontextmanager
async def _held(connection: asyncpg.Connection, key: int) -> AsyncIterator[bool]:
    """Whether the lock could be had at once; it is held until the end."""
    held = await connection.fetchval("select pg_catalog.pg_try_advisory_lock($1)", key)
    try:
        yield held
    finally:
        if held and not connection.is_closed():
            await connection.execute(f"select pg_catalog.pg_advisory_unlock({key})")


async def _sweep(connection: asyncpg.Connection, found: Sequence[Leftover], swept: Swept) -> None:
    schemas = [each.name for each in found if each.kind == "schema"]
    kept = await _drop_schemas(connection, schemas, Proof(found[0].run)) if schemas else []
    for each in found:
        if each.kind == "database":
            kept += await _drop_database(connection, each.name)
    swept.kept += kept
    staying = {each.name for each in kept}
    swept.dropped += [each for each in found if each.name not in staying]


async def _drop_schemas(connection: asyncpg.Connection, schemas: Collection[str], proof: Proof) -> list[Kept]:
    """Drops each by itself, those first that no other depends on; what is left then, together."""
    waiting: Collection[str] = schemas
    while waiting:
        left = [kept.name for schema in waiting for kept in await _drop_one(connection, schema, proof)]
        if len(left) == len(waiting):
            return await _dropped(connection, left, proof, marking=True)
        waiting = left
    return []


async def _drop_one(connection: asyncpg.Connection, schema: str, proof: Proof) -> list[Kept]:
    try:
        # A whole lock table is not there for the sweep alone: tests run beside it.
        if await connection.fetchval(_IS_LARGE, schema):
            await thin_out(connection, schema, proof, seconds=SECONDS_TO_LOCK)
        return await drop(connection, [schema], proof, seconds=SECONDS_TO_LOCK, marking=False)
    except asyncpg.PostgresError:
        pass  # told if it fails in the end too
    return await _dropped(connection, [schema], proof, marking=False)


async def _dropped(
    connection: asyncpg.Connection, schemas: Sequence[str], proof: Proof, *, marking: bool
) -> list[Kept]:
    try:
        return await drop(connection, schemas, proof, seconds=SECONDS_TO_LOCK, marking=marking)
    except asyncpg.PostgresError as error:
        return [Kept(schema, f"the server refused to drop it: {masked(str(error))}") for schema in schemas]


async def _drop_database(connection: asyncpg.Connection, database: str) -> list[Kept]:
    """Drops a database if nobody is in it."""
    try:
        await cluster.drop_database(connection, database, force=False)
    except FAILURES as error:
        return [Kept(database, f"the server refused to drop it: {masked(str(error))}", "database")]
    return []
