"""What of a server looks like the plugin's, with all that a person wants to know of it; nothing is changed or locked.

`leftovers` is the short form of it, which sweeps ask for.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import asyncpg

from pytest_pgdbm.connections.registration import find_processes
from pytest_pgdbm.ground import locks
from pytest_pgdbm.ground.names import is_ours, parse_database, parse_schema
from pytest_pgdbm.schemas.drop import find_hung_on
from pytest_pgdbm.schemas.leftovers import Leftover, find
from pytest_pgdbm.schemas.proof import Said, database_mark, mark_of, read

State = Literal["alive", "dying", "dead"]

_SCHEMAS = """
select n.nspname as name, pg_catalog.obj_description(n.oid, 'pg_namespace') as comment,
    pg_catalog.pg_get_userbyid(n.nspowner) as owner, pg_catalog.pg_has_role(n.nspowner, 'USAGE') as mine
from pg_catalog.pg_namespace n
where n.nspname ~ '^pgdbm_[0-9a-f]{10}_'
    or pg_catalog.obj_description(n.oid, 'pg_namespace') like 'pytest-pgdbm schema of run %'
order by n.oid
"""
_DATABASES = """
select d.datname as name, pg_catalog.shobj_description(d.oid, 'pg_database') as comment,
    pg_catalog.pg_get_userbyid(d.datdba) as owner, pg_catalog.pg_has_role(d.datdba, 'USAGE') as mine,
    d.datconnlimit as mark,
    case when pg_catalog.has_database_privilege(d.oid, 'CONNECT') then pg_catalog.pg_database_size(d.oid) end as size,
    (select count(*) from pg_catalog.pg_stat_activity a where a.datid = d.oid) as sessions
from pg_catalog.pg_database d
where d.datname ~ '^pgdbm_[0-9a-f]{10}_'
    or pg_catalog.shobj_description(d.oid, 'pg_database') like 'pytest-pgdbm database of run %'
order by d.oid
"""
# A relation that somebody rewrites is locked; the caller bounds how long that is waited for.
_SIZES = """
select n.nspname as name, sum(pg_catalog.pg_total_relation_size(c.oid))::bigint as size
from pg_catalog.pg_namespace n join pg_catalog.pg_class c on c.relnamespace = n.oid
where n.nspname = any($1) and c.relkind in ('r', 'm', 'S') group by 1
"""
_HOMES = "select oid, datname as name from pg_catalog.pg_database"
_HELD = """
select l.classid::bigint << 32 | l.objid::bigint as key from pg_catalog.pg_locks l
where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
"""


class Seen(NamedTuple):
    """A schema or database that looks like the plugin's.

    `size` is in bytes, None where it cannot be known now. `said` is what its comment says, if that is one of the
    plugin's. `run` and `state` are set where there is proof that the plugin made it by way of this database: the run
    lives, or this process of it has died (`dying`), or nobody of it lives (`dead`). `why` says what keeps it: why it is
    not ours to drop, or what would make a sweep leave it; "" if nothing does.
    """

    kind: Literal["schema", "database"]
    name: str
    owner: str
    size: int | None
    said: Said | None
    run: str = ""
    state: State | None = None
    why: str = ""


async def survey(connection: asyncpg.Connection) -> list[Seen]:
    """All that looks like the plugin's: schemas, then databases, the oldest first."""
    ours = await find(connection)
    held = {row["key"] for row in await connection.fetch(_HELD)}
    for run, process in await find_processes(connection):
        held |= {locks.of_run(run), locks.of_process(run, process)}
    states = {(each.kind, each.name): (each.run, _state(each, held)) for each in ours}
    return [_proved(seen, *states.get((seen.kind, seen.name), ("", None))) for seen in await _look(connection, ours)]


def _proved(seen: Seen, run: str, state: State | None) -> Seen:
    return seen._replace(run=run, state=state, why=seen.why if state in (None, "dead") else "")


async def _look(connection: asyncpg.Connection, ours: Sequence[Leftover]) -> list[Seen]:
    mine = {each.name for each in ours}
    kept = await _kept(connection, ours)
    schemas = await connection.fetch(_SCHEMAS)
    sizes = await _sizes(connection, [row["name"] for row in schemas])
    homes: dict[int | None, str] = {database_mark(row["oid"]): row["name"] for row in await connection.fetch(_HOMES)}
    found: list[Seen] = []
    for row in schemas:
        why = _not_mine(row) or kept.get(row["name"], "") if row["name"] in mine else _no_proof(row, "schema")
        size = None if sizes is None else sizes.get(row["name"], 0)
        found.append(Seen("schema", row["name"], row["owner"], size, read(row["comment"]), why=why))
    for row in await connection.fetch(_DATABASES):
        why = _in_use(row) or _not_mine(row) if row["name"] in mine else _no_proof_of_database(row, homes)
        found.append(Seen("database", row["name"], row["owner"], row["size"], read(row["comment"]), why=why))
    return found


def _state(its: Leftover, held: set[int]) -> State:
    if locks.of_run(its.run) not in held:
        return "dead"
    return "alive" if locks.of_process(its.run, its.worker) in held else "dying"


async def _kept(connection: asyncpg.Connection, ours: Sequence[Leftover]) -> dict[str, str]:
    """Which schemas a sweep would leave, and why; each run's are swept together."""
    runs: dict[str, list[str]] = defaultdict(list)
    for each in ours:
        if each.kind == "schema":
            runs[each.run].append(each.name)
    return {kept.name: kept.why for names in runs.values() for kept in await find_hung_on(connection, names)}


async def _sizes(connection: asyncpg.Connection, schemas: Sequence[str]) -> dict[str, int] | None:
    with contextlib.suppress(asyncpg.LockNotAvailableError):
        async with connection.transaction():
            return {row["name"]: row["size"] for row in await connection.fetch(_SIZES, schemas)}
    return None


def _in_use(row: Mapping[str, Any]) -> str:
    count = row["sessions"]
    return f"{count} {'session is' if count == 1 else 'sessions are'} in it" if count else ""


def _not_mine(row: Mapping[str, Any]) -> str:
    return "" if row["mine"] else f"only its owner {row['owner']} or a superuser may drop it"


def _no_proof(row: Mapping[str, Any], kind: str) -> str:
    named = parse_schema(row["name"]) if kind == "schema" else parse_database(row["name"])
    said = read(row["comment"])
    if named is None:
        return f"the plugin gives no {kind} such a name"
    if said is None or said.kind != kind:
        return "its comment does not say that the plugin made it"
    return f"its comment says that run {said.run} made it"


def _no_proof_of_database(row: Mapping[str, Any], homes: Mapping[int | None, str]) -> str:
    if is_ours(row["name"]) and parse_database(row["name"]) is None:
        return "it is a worker's, on a server that the plugin started"
    home, said = homes.get(mark_of(row["mark"], row["comment"])), read(row["comment"])
    if home is not None and (row["comment"] is None or said is not None):
        return f"it was made by way of database {home}, and is swept there"
    return _no_proof(row, "database") if home is not None else "it lacks the mark that the plugin makes databases with"
