"""What looks like the plugin's in a database, and is not: it must be there as it was, whatever runs have done."""

from __future__ import annotations

import asyncio
import hashlib

import asyncpg

from benchmarks.stress.projects import ask

_MAKE = """
create schema pgdbm; create schema pgdbm_notes;
create schema pgdbm_0123456789_main_1_things;
create schema pgdbm_0123456789_main_2_things;
comment on schema pgdbm_0123456789_main_2_things is
    'pytest-pgdbm schema of run 9876543210, process 1 on it, service ''x''';
create schema "pgdbm_0123456789_main_3_Things";
comment on schema "pgdbm_0123456789_main_3_Things" is 'keep';
create schema test_0123456789; create schema pytest_pgdbm;
create table pgdbm_0123456789_main_1_things.things (id serial primary key, run text);
insert into pgdbm_0123456789_main_1_things.things (run) select 'mine' from generate_series(1, 100);
create table public.things (id serial primary key, run text);
insert into public.things (run) values ('mine'), ('yours');
create view pgdbm_notes.all_things as select * from public.things
    union all select * from pgdbm_0123456789_main_1_things.things;
create type public.mood as enum ('good', 'bad');
create function pgdbm.answer() returns int language sql as 'select 42';
"""

_LOOK = """
select format('%s|%s|%s', n.oid, n.nspname, obj_description(n.oid, 'pg_namespace')) from pg_namespace n
where n.nspname !~ '^pg_' and n.nspname <> all($1)
union all select format('%s|%s|%s|%s', c.oid, c.xmin, c.relname, c.relfilenode) from pg_class c
join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_|information_schema' and n.nspname <> all($1)
union all select format('%s|%s|%s', p.oid, p.xmin, p.proname) from pg_proc p
join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'pgdbm'
union all select format('%s|%s', t.ctid, t) from public.things t
union all select format('%s|%s', t.ctid, t) from pgdbm_0123456789_main_1_things.things t
order by 1
"""


def make(url: str) -> None:
    """Puts them into the database."""

    async def go() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(_MAKE)
        await connection.close()

    asyncio.run(go())


def state(url: str, besides: list[str]) -> str:
    """What stands for all of them, down to numbers of rows and files; `besides` are schemas that runs have left."""
    rows = ask(url, _LOOK, besides)
    return hashlib.sha256(repr([row[0] for row in rows]).encode()).hexdigest()
