"""What tests do to a set: statements of all kinds, and what giving the set back may cost after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equality.vocabulary import IDENTITIES, SEQUENCES, Cost, Table
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


@dataclass(frozen=True)
class Act:
    """SQL, and whose set may have to be built anew for it; or `rows` that go by COPY `into` this column of a table."""

    sql: str
    cost: Cost = "never"
    rows: Sequence[str] | None = None
    into: tuple[str, str, str] = ("", "", "")

    def __repr__(self) -> str:
        """The SQL."""
        return self.sql if self.rows is None else f"{self.sql} <- {len(self.rows)} lines"


def _each(cost: Cost, text: str) -> list[Act]:
    return [Act(line.strip(), cost) for line in text.splitlines() if line.strip()]


COUNTS = st.sampled_from([1, 1, 2, 5, 30, 60]) | st.sampled_from([200, 1000])
MODULI = st.sampled_from([1, 1, 2, 3, 7])


def inserts(table: Table) -> SearchStrategy[Act]:
    """Rows that come, also some that are there already."""
    return st.builds(
        lambda first, count, more: Act(table.insert(first, count, more), table.cost),
        st.integers(1, 40) | st.integers(1, 5000),
        COUNTS,
        st.sampled_from(["", "", "on conflict do nothing", "returning *"]),
    )


def changes(table: Table) -> SearchStrategy[Act]:
    """Rows that change, often and all over, so that pages are pruned."""
    return st.builds(
        lambda modulus, times: Act(";\n".join([table.update(modulus)] * times), table.cost),
        MODULI,
        st.sampled_from([1, 1, 1, 4, 12]),
    )


def losses(table: Table) -> SearchStrategy[Act]:
    """Rows that go."""
    deletions = st.builds(lambda modulus: Act(table.delete(modulus), table.cost), MODULI)
    truncations = st.sampled_from(["", " cascade", " restart identity", " restart identity cascade"]).map(
        lambda how: Act(f"truncate {table.name}{how}", table.cost)
    )
    return deletions | deletions | truncations


def locks(table: Table) -> SearchStrategy[Act]:
    """Reading that leaves a trace in the rows, or in the way of others."""
    return st.sampled_from(
        [
            Act(f"select * from {table.name} for update", table.cost),
            Act(f"select * from {table.name} for key share", table.cost),
            Act(f"lock table {table.name} in exclusive mode", table.cost),
            Act(f"explain analyze {table.insert(7000, 3)}", table.cost),
            Act(f"declare c{table.key[0]} cursor with hold for select * from {table.name}", table.cost),
        ]
    )


def copies(table: Table) -> SearchStrategy[Act]:
    """Rows that come by COPY, good ones and bad ones."""
    service, _, quoted = table.name.partition(".")
    name, column = (_unquoted(each) for each in (quoted, table.columns.split(",")[0]))
    lines = st.sampled_from([["1"], ["7"] * 3, [str(n) for n in range(300, 360)], ["nonsense"], ["1\t2\t3"]])
    sql = f"copy {table.name} ({column}) from stdin"
    return lines.map(lambda rows: Act(sql, table.cost, tuple(rows), (service.strip("<>"), name, column)))


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def merges(table: Table) -> SearchStrategy[Act]:
    """All at once. From PostgreSQL 15 on; views and rules refuse it."""
    return st.builds(
        lambda first, count: Act(
            f"merge into {table.name} t using generate_series({first}, {first + count}) i on t.{table.key} = i"
            f" when matched and i % 2 = 0 then delete when matched then update set {table.change}"
            f" when not matched then insert ({table.columns}) values ({table.values})",
            table.cost,
        ),
        st.integers(1, 100),
        st.sampled_from([3, 50]),
    )


def writes(tables: Sequence[Table]) -> SearchStrategy[Act]:
    """Anything that writes rows."""
    return st.sampled_from(tables).flatmap(
        lambda table: st.one_of(
            inserts(table), inserts(table), changes(table), losses(table), locks(table), copies(table), merges(table)
        )
    )


def sequences() -> SearchStrategy[Act]:
    """Numbers that are taken and set."""
    return st.builds(
        lambda name, how: Act(how.replace("@", name)),
        st.sampled_from(SEQUENCES),
        st.sampled_from(
            [
                *("select nextval('@')", "select nextval('@'), nextval('@'), nextval('@')"),
                *("select setval('@', 3)", "select setval('@', 4, false)", "select setval('@', -8)"),
                *("alter sequence @ restart", "alter sequence @ restart with 2", "select currval('@')"),
                *("begin; select nextval('@'); rollback", "begin; alter sequence @ restart with 4; rollback"),
                "select nextval('@') from generate_series(1, 100)",
            ]
        ),
    ) | st.sampled_from(IDENTITIES).map(lambda table: Act(f"alter table {table} alter id restart with 77"))


CONTROL = _each(
    "never",
    """
    begin
    begin isolation level serializable
    begin isolation level repeatable read; select count(*) from <depot>.items
    begin read only
    commit
    commit and chain
    rollback
    savepoint a
    rollback to a
    release a
    set constraints all immediate
    set constraints all deferred
    prepare transaction 'half'
    """,
)

FAILURES = _each(
    "never",
    """
    insert into <depot>.items (code) values (null)
    insert into <depot>.items (code, stock) values ('x', -1)
    insert into <depot>.suppliers (name, boss) values ('x', 4711)
    insert into <shop>.orders (item) values (-1)
    insert into <shop>.orders (item, qty) select id, 99 from <depot>.items
    insert into <shop>.bookings (during) values ('[1,5)'), ('[2,3)')
    insert into <shop>.own_rows (v) values ('no')
    insert into <depot>.events values (1, 'x', 1)
    insert into <depot>.readings (doubled) values (1)
    insert into <depot>.parts (k) values (null)
    insert into <depot>.stocked (id, code, stock) values (1, 'x', 0)
    update <depot>.suppliers set id = 1 / (id - id)
    delete from <shop>.hens
    select 1 / 0
    select nonsense
    do $$ begin insert into <depot>.keyless values (1, 'x'); raise 'no'; end $$
    do $$ begin insert into <depot>.keyless values (1, 'x'); raise 'no'; exception when others then null; end $$
    select pg_terminate_backend(pg_backend_pid())
    """,
)

SESSION = _each(
    "never",
    """
    create temp table items (id int, v text); insert into items values (1, 'mine')
    create temp table like_it (like <depot>.items including all)
    create temp table copied as select * from <depot>.readings
    create temp table of_types (m <depot>.mood, p <depot>.place, q <depot>.quantity)
    create temp view over_it as select * from <depot>.items
    create temp sequence tickets
    create temp table here (id int) on commit drop
    create temp table mine (v text); create trigger t before insert on mine execute function <shop>.noted()
    create temp table serial (id serial primary key); insert into serial default values
    set work_mem = '1MB'
    set search_path = public
    set local search_path = public
    set role none
    set session_replication_role = replica
    set session_replication_role = default
    set datestyle = german
    set row_security = off
    set statement_timeout = '1min'
    set default_transaction_read_only = on
    set default_transaction_isolation = serializable
    select pg_advisory_lock(1), pg_advisory_lock_shared(2, 3)
    select pg_advisory_xact_lock(4)
    listen gossip
    notify gossip, 'news'
    prepare of_items as select * from <depot>.items
    execute of_items
    deallocate all
    select lo_create(0)
    select set_config('my.own', 'x', false)
    create function pg_temp.mine(<depot>.mood) returns <depot>.place language sql as 'select null::<depot>.place'
    discard all
    discard plans
    """,
)

MAINTENANCE = _each(
    "never",
    """
    vacuum
    vacuum <depot>.readings
    vacuum (freeze) <depot>.items, <depot>.suppliers, <depot>.documents
    vacuum full <depot>.readings
    vacuum full <depot>.documents
    vacuum full <depot>.items
    vacuum full <depot>.scans
    vacuum (index_cleanup off, truncate off) <depot>.items
    analyze
    analyze <depot>.items
    vacuum analyze <depot>.documents
    cluster <depot>.clustered
    cluster
    cluster <depot>.clustered using clustered_pkey
    reindex table <depot>.items
    reindex index <depot>.items_hash
    reindex table <depot>.suppliers
    reindex table <shop>.spots
    reindex schema <depot>
    checkpoint
    """,
)

CONCURRENTLY = _each(
    "any",
    """
    reindex table concurrently <depot>.items
    reindex table concurrently <depot>.readings
    create index concurrently there on <depot>.items (note)
    drop index concurrently <depot>.items_name
    """,
)
"""What leaves a trace when another connection is in its way."""

VIEWS = _each(
    "never",
    """
    refresh materialized view <depot>.totals
    refresh materialized view concurrently <depot>.totals
    refresh materialized view <depot>.of_totals
    refresh materialized view <depot>.no_rows
    refresh materialized view <shop>.popular
    begin; refresh materialized view <depot>.no_rows; rollback
    """,
) + _each(
    "any",
    """
    refresh materialized view <depot>.never
    refresh materialized view <depot>.stale
    refresh materialized view <depot>.too_early
    refresh materialized view <depot>.totals with no data
    """,
)

HARMLESS = _each(
    "never",
    """
    begin; alter table <depot>.items add zz int; create table <depot>.n (x int); drop view <depot>.stocked; rollback
    begin; savepoint a; alter table <depot>.readings drop column value cascade; rollback to a; commit
    begin; drop table <depot>.items cascade; rollback
    begin; truncate <depot>.suppliers cascade; rollback
    create table if not exists <depot>.items (x int)
    create index if not exists items_name on <depot>.items (lower(name))
    create sequence if not exists <depot>.tickets
    alter table <depot>.items add column if not exists name text
    drop table if exists <depot>.nothing_there
    alter table <depot>.items alter stock drop not null
    alter table <depot>.items alter feeling set default 'ok'
    alter table <shop>.watched disable trigger before_row; alter table <shop>.watched enable trigger before_row
    alter table <shop>.ruled disable rule also; alter table <shop>.ruled enable rule also
    alter table <depot>.items set (fillfactor = 70); alter table <depot>.items reset (fillfactor)
    create or replace view <shop>.simple as select id, what from <shop>.journal
    grant select on <depot>.items to public
    grant select on <depot>.readings to public; revoke select on <depot>.readings from public
    comment on table <depot>.items is 'what there is'
    create table <depot>.gone (id serial primary key, m <depot>.mood); drop table <depot>.gone
    create type <depot>.gone as enum ('a'); drop type <depot>.gone
    create index gone on <depot>.items (note); drop index <depot>.gone
    drop index <depot>.readings_taken; create index readings_taken on <depot>.readings (taken)
    alter type <depot>.mood add value if not exists 'sad'
    alter table <depot>.clustered cluster on clustered_pkey
    create table public.elsewhere (id serial, v text); drop table public.elsewhere
    """,
)

DDL = _each(
    "any",
    """
    alter table <depot>.items add column zz int default 5
    alter table <depot>.items drop column note
    alter table <depot>.items alter name set default 'x'
    alter table <depot>.items alter name set not null
    alter table <depot>.items rename name to named
    alter table <depot>.items rename to itemised
    alter table <depot>.readings alter value type numeric
    alter table <depot>.suppliers alter id set generated by default
    alter table <depot>.parts detach partition <depot>.parts_mid
    create table <depot>.parts_high partition of <depot>.parts for values from (50) to (60)
    alter table <depot>.dogs no inherit <depot>.animals
    alter table <depot>.visits set logged
    alter table <depot>.changed replica identity default
    alter table <depot>.clustered set without cluster
    alter table <shop>.watched disable trigger before_row
    alter table <shop>.watched enable trigger disabled
    alter table <shop>.watched disable trigger all
    alter table <shop>.orders disable trigger all
    alter table <shop>.own_rows disable row level security
    alter table <shop>.lines alter constraint lines_what not deferrable
    alter table <shop>.orders drop constraint orders_item_fkey
    create table <depot>.n (x int)
    create table <depot>.n as select * from <depot>.items
    create index on <depot>.items (note)
    drop index <depot>.items_name
    create view public.over_it as select id from <depot>.items
    create function public.with_it(<depot>.mood) returns int language sql as 'select 1'
    drop view <shop>.open_orders
    drop table <depot>.suppliers cascade
    drop table <depot>.nothing
    alter type <depot>.mood add value 'new'
    alter domain <depot>.quantity drop constraint not_negative
    alter type <depot>.place add attribute more int cascade
    create or replace function <shop>.shout() returns trigger language plpgsql as 'begin return new; end'
    create trigger another before insert on <depot>.items for each row execute function <shop>.shout()
    drop trigger late on <shop>.orders
    create rule another as on insert to <depot>.items do instead nothing
    create policy another on <shop>.own_rows using (true)
    alter sequence <depot>.tickets cache 1
    alter sequence <depot>.tickets increment by 3
    alter sequence <depot>.used owned by <depot>.items.id
    grant update on <depot>.items to public
    grant select (note) on <depot>.items to public
    revoke select on <depot>.items from public
    alter default privileges in schema <depot> grant insert on tables to public
    comment on column <depot>.items.note is 'otherwise'
    comment on schema <shop> is 'x'
    drop materialized view <depot>.no_rows
    alter materialized view <depot>.totals rename n to m
    drop statistics <depot>.items_related
    create publication of_items for table <depot>.items
    do $$ begin execute 'alter table <depot>.items alter name set default 77'; end $$
    drop schema <shop> cascade
    """,
)
