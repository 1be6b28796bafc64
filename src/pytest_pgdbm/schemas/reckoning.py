"""What a drop will take is reckoned before it, and compared with what it took while that can still be undone.

To have read what depends on a schema is no protection by itself. What somebody has not committed yet cannot be read;
`DROP … CASCADE` waits for their locks, reads once more when they have committed, and takes what it finds then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

# What goes with it, whoever's it is, as the server finds it: dependents, and for a part the whole of which it is one.
# https://www.postgresql.org/docs/current/catalog-pg-depend.html
_TAKEN = """
with recursive taken(classid, objid, objsubid) as (
    select $1::regclass::oid, oid, 0 from unnest($2::oid[]) oid
    union
    select further.* from taken t cross join lateral (
        select d.classid, d.objid, d.objsubid from pg_catalog.pg_depend d
        where d.refclassid = t.classid and d.refobjid = t.objid and t.objsubid in (0, d.refobjsubid)
        union all
        select d.refclassid, d.refobjid, d.refobjsubid from pg_catalog.pg_depend d
        where d.classid = t.classid and d.objid = t.objid and t.objsubid in (0, d.objsubid) and d.deptype in ('e', 'i')
    ) further
)
"""

# How many rows of pg_depend this session has deleted: an object has at least one for each that it depends on. The
# figure is of this moment, and nobody else's. https://www.postgresql.org/docs/current/monitoring-stats.html
_DELETED = """
case when pg_catalog.current_setting('track_counts')::boolean
    then pg_catalog.pg_stat_get_xact_tuples_deleted('pg_catalog.pg_depend'::regclass) end
"""

_RECKON = f"""
{_TAKEN}
select array_agg(classid) as classids, array_agg(objid) as objids, array_agg(objsubid) as objsubids,
    (
        select count(distinct d.ctid) from taken t
        join pg_catalog.pg_depend d on d.classid = t.classid and d.objid = t.objid and t.objsubid in (0, d.objsubid)
    ) + {_DELETED} as deleted
from taken
"""

_COMPARE = f"""
select {_DELETED} is distinct from $4::bigint or exists (
    select from unnest($1::oid[], $2::oid[], $3::int[]) t(classid, objid, objsubid)
    join pg_catalog.pg_depend d on d.refclassid = t.classid and d.refobjid = t.objid
        and t.objsubid in (0, d.refobjsubid)
)
"""


@dataclass(frozen=True)
class Reckoning:
    """What a drop is to take in the transaction that it was reckoned in."""

    _row: Sequence[Any]

    async def compare(self, connection: asyncpg.Connection) -> None:
        """To be called after the drop; raises asyncpg.SerializationError if it took more, or less, or left dependents.

        What came too late to be taken but in time to be seen would refer to what is no more: a column, say, of a type.
        """
        if await connection.fetchval(_COMPARE, *self._row):
            raise asyncpg.SerializationError("what depends on it has changed meanwhile")


async def reckon(connection: asyncpg.Connection, catalog: str, oids: Sequence[int]) -> Reckoning:
    """What goes with these objects of one catalog. Whether all of it may go is to be looked at later, not before."""
    return Reckoning(await connection.fetchrow(_RECKON, catalog, oids))
