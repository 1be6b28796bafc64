"""Finds migrations that reach outside their own schemas; looked for once per set and content in a run.

A throw-away schema isolates a test only as long as what the migrations do stays in it. Three things are looked at:
schemas that the SQL names itself, before anything is run, since no catalog records them for function bodies; what each
migration touched, while its transaction can still be undone; and what the built set depends on outside.

What a transaction touched is known by its own locks and its own rows, so that concurrent work is never blamed.
https://www.postgresql.org/docs/current/view-pg-locks.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.ground.names import identifier
from pytest_pgdbm.schemas.catalog import BELONGING, IDENTITY, IN_A_SCHEMA, IN_NO_SCHEMA, INSIDE, home
from pytest_pgdbm.schemas.plan import Plan
from pytest_pgdbm.schemas.watched import runs_without_transaction
from pytest_pgdbm.services.files import SqlFile
from pytest_pgdbm.sql.lexer import statements, tokens
from pytest_pgdbm.sql.scan import QualifiedName, schemas_named

_FIRST_NOT_SYSTEMS = 16384
"""What has a lower number came with the server: `FirstNormalObjectId` in its src/include/access/transam.h."""

_SETTINGS = (0, 0)
"""Stands for what `ALTER ROLE … SET` and `ALTER DATABASE … SET` write, which is no object."""

_ROWS = "\nunion all ".join(
    f"select 'pg_catalog.{catalog}'::regclass::oid as classid, oid as objid, {schema} as home, {name} as name, xmin"
    f" from pg_catalog.{catalog}"
    for catalog, schema, name in (
        *(
            (c, p + "namespace", p + "name")
            for c, p in IN_A_SCHEMA.items()
            if c not in ("pg_constraint", "pg_extension")
        ),
        *((c, "0::oid", name) for c, name in IN_NO_SCHEMA.items()),
    )
)

# What came with an extension belongs to it, and what is part of a table to that.
_KNOWN = f"""
select r.classid, r.objid, coalesce(n.nspname || '.', '') || r.name as name
from ({_ROWS}) r left join pg_catalog.pg_namespace n on n.oid = r.home
where r.objid >= {_FIRST_NOT_SYSTEMS}
    and (n.nspname is null or n.nspname <> all($1) and n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
    and not exists (select from pg_catalog.pg_depend d
        where d.classid = r.classid and d.objid = r.objid and d.deptype in ('e', 'i', 'P'))
"""

# A transaction and its subtransactions have later and later numbers. What is visible, and written by one that is not
# committed yet, was written by this one: https://www.postgresql.org/docs/current/functions-info.html
_TOUCHED = f"""
with me as (
    select number, age(number::xid) as age
    from (select pg_current_xact_id_if_assigned() as number) x where number is not null
),
homes as (select oid from pg_catalog.pg_namespace where nspname = any($1) or nspname ~ '^pg_'),
written as (
    select r.classid, r.objid from me cross join (
        {_ROWS}
        union all select 'pg_catalog.pg_type'::regclass, enumtypid, 0::oid, '', xmin from pg_catalog.pg_enum
        union all select 0, 0, 0::oid, '', xmin from pg_catalog.pg_db_role_setting
    ) r
    where age(r.xmin) <= me.age and r.home <> all(array(select oid from homes))
        and pg_xact_status((me.number::text::numeric + me.age - age(r.xmin))::text::xid8) = 'in progress'
)
select classid, objid, false as reads from written
union all
select coalesce(classid, 'pg_catalog.pg_class'::regclass), coalesce(objid, relation),
    mode in ('AccessShareLock', 'RowShareLock')
from pg_catalog.pg_locks
where pid = pg_backend_pid() and coalesce(objid, relation) = any($2)
    and (locktype = 'relation' or locktype = 'object' and mode <> 'AccessShareLock')
"""

_OUTSIDE = f"""
cross join lateral (select {home("t.classid", "t.objid")} as home offset 0) h
where (h.home is null or h.home <> all(array(
        select oid from own union all select oid from neutral
        union all select 'pg_catalog'::regnamespace union all select 'information_schema'::regnamespace)))
    and not exists (select from pg_catalog.pg_depend d where d.classid = t.classid and d.objid = t.objid
        and d.deptype in ('e', 'i', 'P'))
    and not exists (select from pg_catalog.pg_class c where t.classid = 'pg_catalog.pg_class'::regclass
        and c.oid = t.objid and c.relkind in ('i', 'I', 't'))
    and not (h.home is null and exists (
        select from pg_catalog.pg_depend d
        cross join lateral (select {home("d.refclassid", "d.refobjid")} as home offset 0) r
        where d.classid = t.classid and d.objid = t.objid and r.home = any(array(select oid from own))))
"""
"""For `t(classid, objid, objsubid)`: without what lies in the set's or the system's schemas, and parts of objects."""

_IDENTIFIED = f"""
with recursive {BELONGING},
t(classid, objid, objsubid) as (select distinct c, o, 0 from unnest($2::oid[], $3::oid[]) x(c, o))
select t.classid, t.objid, identity.type || ' ' || identity.identity as name
from t {IDENTITY.format("t")} {_OUTSIDE}
order by 3
"""

# Whether there is anything to look at more closely: much quicker than that look, which most sets do not need.
_LEANS = f"""
with recursive {INSIDE}
select exists (
    select d.refclassid, d.refobjid
    from inside i join pg_catalog.pg_depend d on d.classid = i.classid and d.objid = i.objid
    where d.refobjid >= {_FIRST_NOT_SYSTEMS}
    except select classid, objid from inside
)
"""

_LEANING = f"""
with recursive {BELONGING},
t(classid, objid, objsubid, by_class, by_id, by_sub) as (
    select distinct d.refclassid, d.refobjid, 0, b.classid, b.objid, d.objsubid
    from belonging b join pg_catalog.pg_depend d on d.classid = b.classid and d.objid = b.objid and d.deptype <> 'e'
    where b.inside
),
o(classid, objid, objsubid, name) as (
    select t.by_class, t.by_id, t.by_sub, identity.type || ' ' || identity.identity
    from t {IDENTITY.format("t")} {_OUTSIDE} and h.home is not null
)
select distinct identity.type || ' ' || identity.identity as object, o.name as other
from o {IDENTITY.format("o")}
order by 1, 2
"""

# A schema that an extension made counts as the extension's.
_SCHEMAS = """
select n.nspname from pg_catalog.pg_namespace n where n.nspname = any($1) and not exists (
    select from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_namespace'::regclass and d.objid = n.oid and d.deptype = 'e')
"""

_MEMBERS = """
select n.nspname, o.name from (
    select 'pg_catalog.pg_class'::regclass as classid, oid, relnamespace as home, relname as name
        from pg_catalog.pg_class where relname = any($2)
    union all select 'pg_catalog.pg_proc'::regclass, oid, pronamespace, proname
        from pg_catalog.pg_proc where proname = any($2)
    union all select 'pg_catalog.pg_type'::regclass, oid, typnamespace, typname
        from pg_catalog.pg_type where typname = any($2)
) o
join pg_catalog.pg_namespace n on n.oid = o.home and n.nspname = any($1)
join pg_catalog.pg_depend d on d.classid = o.classid and d.objid = o.oid and d.deptype = 'e'
"""


class Reach:
    """The look at one set while it is built for the first time.

    `known` has what there is outside of the set, by catalog and number.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        plan: Plan,
        schemas: Mapping[str, str],
        known: Mapping[tuple[int, int], str],
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._schemas = schemas
        self._known = known

    @classmethod
    async def before(
        cls,
        connection: asyncpg.Connection,
        plan: Plan,
        schemas: Mapping[str, str],
        others: Sequence[str],
    ) -> Reach:
        """Begins the look, before anything is built. `others` are the services that the run knows besides the set.

        Raises BuildError if the SQL names schemas itself.
        """
        if found := await _spoken(connection, plan, others):
            raise _reached(found)
        return cls(connection, plan, schemas, await _known(connection, schemas))

    async def check_file(self, file: SqlFile) -> None:
        """Looks at the transaction in which this migration ran just now. Raises BuildError, which undoes it."""
        own, outside = list(self._schemas.values()), [objid for _, objid in self._known]
        rows = await self._connection.fetch(_TOUCHED, own, outside)
        if rows and (lines := await self._described(rows)):
            raise _reached(f"{file.path}: {self._in_words(line)}" for line in lines)

    async def check_set(self) -> None:
        """Looks at the set as it was built. Raises BuildError."""
        lines = [_refers(*each) for each in await self._leaning()]
        for member in self._plan.members:
            for file in filter(_commits_by_itself, member.files):
                lines += [f"{file.path}: makes {name}, which stays there" for name in await self._made_by(file)]
        if lines:
            raise _reached(map(self._in_words, lines))

    async def _described(self, rows: Sequence[asyncpg.Record]) -> list[str]:
        """What the transaction did outside, in words; nothing if all of it is allowed after all."""
        names = await self._identified([(row["classid"], row["objid"]) for row in rows])
        verbs: dict[str, str] = {}
        for row in rows:
            key = row["classid"], row["objid"]
            name = names.get(key) or self._known.get(key)
            if name is not None:
                verb = self._verb(key, gone=key not in names, reads=row["reads"])
                verbs[name] = verb if verb != "uses" else verbs.get(name, verb)
        leaning = await self._leaning()
        told = {other for _, other in leaning}
        return [_refers(*each) for each in leaning] + [
            f"{verb} {name}" for name, verb in verbs.items() if verb == "makes" or name not in told
        ]

    def _verb(self, key: tuple[int, int], *, gone: bool, reads: bool) -> str:
        if gone:
            return "drops"
        if key not in self._known and key[1] >= _FIRST_NOT_SYSTEMS:
            return "makes"
        return "uses" if reads else "changes"

    async def _made_by(self, file: SqlFile) -> list[str]:
        """What is new outside and named in the file: nothing else tells who made it, once it is committed."""
        words = {token.name for token in tokens(file.text)} - {None}
        now = await _known(self._connection, self._schemas)
        new = [key for key, name in now.items() if key not in self._known and name.rpartition(".")[2] in words]
        return list((await self._identified(new)).values())

    async def _identified(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        own = list(self._schemas.values())
        objects = [key for key in keys if key != _SETTINGS]
        rows = await self._connection.fetch(_IDENTIFIED, own, [c for c, _ in objects], [o for _, o in objects])
        found = {(row["classid"], row["objid"]): row["name"] for row in rows if row["name"] is not None}
        return found | ({_SETTINGS: "the settings of a role or the database"} if _SETTINGS in keys else {})

    async def _leaning(self) -> list[tuple[str, str]]:
        own = list(self._schemas.values())
        if not await self._connection.fetchval(_LEANS, own):
            return []
        rows = await self._connection.fetch(_LEANING, own)
        return [(row["object"], row["other"]) for row in rows]

    def _in_words(self, line: str) -> str:
        for service, schema in self._schemas.items():
            line = line.replace(schema, service)
        return line


def _refers(thing: str, other: str) -> str:
    return f"{thing} refers to {other}"


def _commits_by_itself(file: SqlFile) -> bool:
    """Whether what the file does is committed before it can be looked at."""
    return runs_without_transaction(file.text) or any(
        next(tokens(statement.text)).is_word("commit", "end") for statement in statements(file.text)
    )


def _reached(lines: Iterable[str]) -> BuildError:
    return BuildError(
        "a migration reached outside its schema\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\n  to mend it: write {{tables.x}} for the service's own tables and {{tables.<service>.x}} for another"
        " service's; what must lie elsewhere needs a database of its own (pgdbm_isolation = database)"
    )


async def _known(connection: asyncpg.Connection, schemas: Mapping[str, str]) -> dict[tuple[int, int], str]:
    rows = await connection.fetch(_KNOWN, list(schemas.values()))
    return {(row["classid"], row["objid"]): row["name"] for row in rows}


async def _spoken(connection: asyncpg.Connection, plan: Plan, others: Sequence[str]) -> list[str]:
    named = [(file, name) for member in plan.members for file in member.files for name in schemas_named(file.text)]
    if not named:
        return []
    there = await _existing(connection, [name for _, name in named])
    foreign = there.schemas | {identifier(name) for name in (*others, *plan.names)}
    return [
        f"{file.path}, line {name.line}: names {name.schema}.{name.name} itself"
        for file, name in named
        if name.schema in foreign and (name.schema, name.name) not in there.of_extensions
    ]


class _There(NamedTuple):
    """Which of the schemas that SQL names exist, and what of that belongs to extensions."""

    schemas: set[str]
    of_extensions: set[tuple[str, str]]


async def _existing(connection: asyncpg.Connection, names: Sequence[QualifiedName]) -> _There:
    schemas, inside = [name.schema for name in names], [name.name for name in names]
    rows = await connection.fetch(_SCHEMAS, schemas)
    members = await connection.fetch(_MEMBERS, schemas, inside)
    return _There({row["nspname"] for row in rows}, {(row["nspname"], row["name"]) for row in members})
