"""Statements and what a fingerprint has to make of them, and a set of two schemas that holds
something for each.

One statement a line. In front of it may stand `15+`, the version from which on the server has it;
`super`, that only a superuser may run it; `alone`, that it cannot run in a transaction.
"""

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?:(?P<since>\d+)\+ |(?P<super>super) |(?P<alone>alone) )*(?P<sql>[a-z].*)", re.DOTALL)


@dataclass(frozen=True)
class Statement:
    sql: str
    since: int
    superuser: bool
    alone: bool


def _parse(text):
    parts = [_LINE.fullmatch(each.strip()) for each in text if each.strip()]
    return [Statement(part["sql"], int(part["since"] or 0), bool(part["super"]), bool(part["alone"])) for part in parts]


def _table(text):
    return _parse(text.splitlines())


PATH = "set search_path = s, t, public"

_SETUP = """
create schema s;
create schema t;
grant usage, create on schema s, t, public to other;
create table p(id serial primary key, a int not null default 1, b text, c text collate "C",
    g int generated always as identity, constraint positive check (a > 0));
create table ch(id int primary key, pid int constraint fk references p(id), v text,
    gen int generated always as (id * 2) stored, unique (id, v));
create index ch_v on ch(v);
create unique index ch_u on ch(v);
create index ch_e on ch((lower(v)));
create index p_a on p(a);
create table marked(id int primary key, v text);
alter table marked cluster on marked_pkey;
create table pa(k int, v text) partition by range(k);
create table pa1 partition of pa for values from (0) to (10);
create table loose(k int, v text);
create index pa_k on only pa(k);
create index pa1_k on pa1(k);
create table inh_p(x int);
create table inh_c() inherits(inh_p);
create table inh_d(x int);
create table twins(a int default 1, b int default 2);
create table bare();
create table bare_child();
create table excl(r int4range, exclude using gist (r with &&));
create unlogged table ul(x int);
create type comp as (x int, y text);
create table typed of comp;
create table loosely(x int, y text);
create view vw as select id, a from p;
create view checked as select id, a from p where a > 0;
create materialized view mv as select id, a from p;
create unique index mvu on mv(id);
create type en as enum('a', 'b');
create type empty as enum();
create domain dom as int constraint dom_check check (value > 0);
create type rng as range(subtype = int4);
create function f(int) returns int language sql as 'select $1';
create function trf() returns trigger language plpgsql as 'begin return new; end';
create procedure pr() language sql as 'select 1';
create function body(int) returns int return $1 + 1;
create function fplus(comp, comp) returns comp language sql as 'select $1';
create operator + (leftarg = comp, rightarg = comp, function = fplus);
create function is_less(comp, comp) returns bool language sql as 'select true';
create operator = (leftarg = comp, rightarg = comp, function = is_less, restrict = eqsel);
create function c2i(comp) returns int language sql as 'select 1';
create cast (comp as int) with function c2i(comp);
create aggregate agg(int)(sfunc = int4pl, stype = int, initcond = '0');
create trigger tr before insert on p for each row execute function trf();
create constraint trigger ctr after insert on ch deferrable for each row execute function trf();
create policy pol on p using (true);
create rule ru as on update to inh_d do also nothing;
create statistics st on a, id from p;
create sequence sq;
create sequence sq2;
create sequence owned owned by ch.id;
create collation coll (locale = 'C', provider = libc);
create text search configuration tsc (copy = simple);
create text search dictionary tsd (template = simple);
super create text search parser tsp (start = prsd_start, gettoken = prsd_nexttoken,
    end = prsd_end, lextypes = prsd_lextype);
super create text search template tst (lexize = dsimple_lexize);
create publication pub for table ch;
create publication pub2;
super create foreign data wrapper w;
super create server srv foreign data wrapper w;
super grant usage on foreign server srv to owner;
create foreign table ft(x int) server srv;
create conversion conv for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
super create operator family opf using btree;
super create operator class opc for type comp using hash as function 1 hash_record(record);
super create function from_sql(internal) returns internal immutable language internal as 'int4recv';
create function t.evf() returns event_trigger language plpgsql as 'begin null; end';
super create event trigger evt on ddl_command_end when tag in ('CREATE SERVER') execute function t.evf();
alter default privileges in schema t grant select on tables to other;
comment on table ch is 'x';
comment on column ch.v is 'x';
grant select on ch to other;
grant select (a) on p to other;
create table t.far(id int primary key, pid int references p(id), e en);
create view t.far_view as select v.id from vw v join t.far using (id);
create table public.elsewhere(id int);
create view public.elsewhere_view as select 1 as one;
create function public.elsewhere_evf() returns event_trigger language plpgsql as 'begin null; end';
insert into p(b) select 'x' from generate_series(1, 5);
insert into ch select i, i, i::text from generate_series(1, 5) i;
insert into pa select 1, 'x';
refresh materialized view mv
"""
SETUP = _parse(_SETUP.split(";\n"))

CHANGES = _table("""
alter table p alter a set default 2
alter table p alter a drop default
alter table p alter b set default 'x'
alter table p alter b set not null
alter table p alter a drop not null
alter table p rename b to bb
alter table p rename to p2
alter table twins rename a to c; alter table twins rename b to a; alter table twins rename c to b
alter table twins alter a set default 2, alter b set default 1
alter type en rename value 'a' to 'c'; alter type en rename value 'b' to 'a'; alter type en rename value 'c' to 'b'
alter sequence sq rename to sq3; alter sequence sq2 rename to sq; alter sequence sq3 rename to sq2
alter table p alter b set storage external
alter table p alter b set compression pglz
alter table p alter b set statistics 7
alter table p alter b set (n_distinct = 5)
alter table p alter c type text collate "POSIX"
alter table inh_d alter x type bigint
alter table p alter b type varchar(10)
alter table p add column zz int
alter table p add column zz int default 5
alter table p add column zz serial
alter table p add column if not exists zz text
alter table p drop column b
alter table p alter g set generated by default
alter table p alter g drop identity
alter table p alter g set increment by 5
alter table p alter a drop default, alter a add generated always as identity
alter table ch alter gen drop expression
17+ alter table ch alter gen set expression as (id * 3)
alter table p add constraint ck check (a < 1000) not valid
alter table p add constraint ck check (a < 1000)
alter table p drop constraint positive
alter table p rename constraint positive to posi
18+ alter table p add constraint nn not null b
18+ alter table ch alter constraint fk not enforced
alter table ch drop constraint fk
alter table ch alter constraint fk deferrable initially deferred
alter table ch rename constraint fk to fkk
alter table ch add constraint un unique using index ch_u
alter table p add primary key (id), drop constraint p_pkey cascade
alter table marked add foreign key (id) references p(id)
alter table excl drop constraint excl_r_excl
alter table p disable trigger tr
alter table p enable always trigger tr
alter table p enable replica trigger tr
alter table p disable trigger user
super alter table p disable trigger all
alter table inh_d disable rule ru
alter table inh_d enable always rule ru
alter table p enable row level security
alter table p force row level security
alter table p set (autovacuum_enabled = false)
alter table p set (fillfactor = 50)
alter table p set (toast.autovacuum_enabled = false)
alter table p replica identity full
alter table p replica identity using index p_pkey
alter table inh_d set unlogged
alter table ul set logged
alter table ch cluster on ch_v
alter table marked set without cluster
cluster ch using ch_v
alter table p owner to other
alter table pa attach partition loose for values from (10) to (20)
alter table pa detach partition pa1
create table pa2 partition of pa default
alter index pa_k attach partition pa1_k
create index on pa(v)
alter table inh_d inherit inh_p
alter table bare_child inherit bare
alter table inh_c no inherit inh_p
alter table typed not of
alter table loosely of comp
alter table ch set schema public
alter table p set schema t
alter table public.elsewhere set schema s
create table n(x int)
create table if not exists n(x int)
create table n as select 1 as x
select 1 as x into n
create table t.n(like p including all)
drop table ch
drop table bare
drop table t.far cascade
create index newi on p(b)
create index if not exists newi on p(b)
create unique index newi on p(id)
drop index ch_v
alter index ch_v set (fillfactor = 50)
alter index ch_v rename to ch_v2
alter index ch_e alter column 1 set statistics 7
alter table only p alter column a set (n_distinct_inherited = 3)
create or replace view vw as select id, a, 1 as z from p
create or replace view vw as select id, a + 0 as a from p
alter view vw set (security_barrier = true)
15+ alter view vw set (security_invoker = true)
alter view checked set (check_option = local)
alter view vw alter a set default 5
alter view vw rename column a to aa
alter view vw rename to vw2
create view v2 as select 1 as x
create view public.v2 as select id from p
create view public.v2 as select null::s.en as e
drop view t.far_view
drop materialized view mv
create materialized view mv2 as select 1 x
alter materialized view mv rename a to aa
alter materialized view mv set (autovacuum_enabled = false)
refresh materialized view mv with no data
drop index mvu
create type en3 as enum('x')
create type newcomp as (x int)
super create type shell
create domain d4 as text
alter type en add value 'c'
alter type en add value 'c' before 'b'
alter type empty add value 'c'
alter type en rename value 'a' to 'z'
alter type en rename to en9
alter type en set schema public
alter type comp add attribute z int cascade
alter type comp rename attribute x to xx cascade
alter type comp drop attribute y cascade
alter type comp owner to other
alter type rng rename to rng2
drop type rng
drop type empty
alter domain dom add check (value < 10)
alter domain dom add check (value < 10) not valid
alter domain dom drop constraint dom_check
alter domain dom rename constraint dom_check to dc
alter domain dom set not null
alter domain dom set default 3
create or replace function f(int) returns int language sql as 'select $1 + 1'
create or replace function body(int) returns int return $1 + 2
alter function f(int) stable
alter function f(int) strict
alter function f(int) security definer
alter function f(int) cost 7
alter function f(int) owner to other
alter function f(int) set work_mem = '1MB'
alter function f(int) set schema public
alter function f(int) rename to f9
alter function f(int) depends on extension plpgsql
alter procedure pr() depends on extension plpgsql
create function f2(int) returns int language sql as 'select 1'
create function f(text) returns int language sql as 'select 1'
create function public.uses(s.en) returns int language sql as 'select 1'
drop function f(int)
drop procedure pr()
create or replace procedure pr() language sql as 'select 2'
create aggregate agg2(int)(sfunc = int4pl, stype = int)
create or replace aggregate agg(int)(sfunc = int4pl, stype = int, initcond = '5')
alter aggregate agg(int) rename to agg9
create operator - (leftarg = comp, rightarg = comp, function = fplus)
drop operator + (comp, comp)
alter operator + (comp, comp) owner to other
alter operator = (comp, comp) set (restrict = neqsel)
drop cast (comp as int)
create cast (comp as text) with inout
create cast (en as text) with inout as assignment
create cast (p as text) with inout
super create transform for comp language sql (from sql with function from_sql(internal))
super alter operator class opc using hash rename to opc2
drop operator class opc using hash
super alter operator family opf using btree add operator 1 = (comp, comp)
super alter operator family opf using btree add function 1 (comp, comp) btrecordcmp(record, record)
super alter operator family opf using btree rename to opf2
alter collation coll rename to coll2
create collation coll3 (locale = 'C', provider = libc)
drop collation coll
alter conversion conv rename to conv2
create default conversion conv3 for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8
alter text search configuration tsc alter mapping for email with tsd
alter text search configuration tsc drop mapping for url
alter text search configuration tsc alter mapping for asciiword with english_stem
alter text search configuration tsc rename to tsc2
alter text search dictionary tsd (accept = false)
alter text search dictionary tsd rename to tsd2
create text search dictionary tsd3 (template = simple)
super alter text search parser tsp rename to tsp2
super create text search parser tsp3 (start=prsd_start, gettoken=prsd_nexttoken, end=prsd_end, lextypes=prsd_lextype)
super alter text search template tst rename to tst2
create statistics st2 on id, b from p
alter statistics st set statistics 10
alter statistics st rename to st9
alter statistics st set schema public
drop statistics st
create trigger tr2 after insert on ch for each row execute function trf()
create trigger tr2 after insert on public.elsewhere for each row execute function trf()
create or replace trigger tr before update on p for each row execute function trf()
alter trigger tr on p rename to tr9
alter trigger tr on p depends on extension plpgsql
alter trigger ctr on ch depends on extension plpgsql
alter index ch_v depends on extension plpgsql
alter materialized view mv depends on extension plpgsql
drop trigger tr on p
create rule r2 as on delete to inh_d do instead nothing
create or replace rule ru as on update to inh_d do instead nothing
alter rule ru on inh_d rename to ru9
drop rule ru on inh_d
create policy pol2 on p using (a > 1)
alter policy pol on p using (a > 2)
alter policy pol on p to other
alter policy pol on p rename to pol9
drop policy pol on p
alter sequence sq increment by 3
alter sequence sq cache 10
alter sequence sq as int
alter sequence sq cycle
alter sequence sq start with 7
alter sequence sq owned by p.a
alter sequence owned owned by ch.pid
alter sequence owned owned by none
alter sequence p_id_seq owned by none
alter sequence sq owner to other
15+ alter sequence sq set unlogged
alter sequence sq rename to sq9
create sequence sq3
drop sequence sq
grant insert (v) on ch to other
grant select (ctid) on p to other
grant select on p to other
grant select on p to public
grant all on all tables in schema s to other
grant execute on function f(int) to other
grant usage on sequence sq to other
grant usage on type en to other
grant usage on schema s to public
grant select on p to other with grant option
revoke select on ch from other
revoke select on ch from other; grant select on marked to other
revoke select (a) on p from other
revoke insert on p from current_user
revoke execute on function f(int) from public
revoke create on schema s from other
alter default privileges in schema s grant select on tables to other
alter default privileges in schema t revoke select on tables from other
alter default privileges grant select on tables to other
alter schema s owner to other
alter schema s rename to s2
drop schema s cascade
drop schema s, t cascade
comment on table p is 'hello'
comment on table ch is 'y'
comment on table ch is null
comment on column p.a is 'hello'
comment on column ch.v is 'y'
comment on column ch.v is null; comment on column ch.id is 'x'
comment on constraint p_pkey on p is 'hello'
comment on constraint dom_check on domain dom is 'x'
comment on function f(int) is 'hello'
comment on procedure pr() is 'hello'
comment on aggregate agg(int) is 'hello'
comment on trigger tr on p is 'hello'
comment on type en is 'hello'
comment on domain dom is 'hello'
comment on policy pol on p is 'x'
comment on index ch_v is 'x'
comment on schema s is 'x'
comment on schema t is 'x'
comment on rule ru on inh_d is 'x'
comment on statistics st is 'x'
comment on sequence sq is 'x'
comment on view vw is 'x'
comment on materialized view mv is 'x'
comment on operator + (comp, comp) is 'x'
super comment on operator class opc using hash is 'x'
super comment on operator family opf using btree is 'x'
comment on cast (comp as int) is 'x'
comment on collation coll is 'x'
comment on conversion conv is 'x'
comment on text search configuration tsc is 'x'
comment on text search dictionary tsd is 'x'
super comment on text search parser tsp is 'x'
super comment on event trigger evt is 'x'
comment on column comp.x is 'x'
comment on column vw.a is 'x'
comment on foreign table ft is 'x'
alter publication pub add table p
alter publication pub drop table ch
15+ alter publication pub set table ch where (id > 1)
15+ alter publication pub set table ch (id)
super 15+ alter publication pub2 add tables in schema s
drop publication pub
super alter event trigger evt disable
super create event trigger evt2 on ddl_command_end execute function t.evf()
super drop event trigger evt
alter foreign table ft options (add a 'b')
alter foreign table ft add column y int
drop foreign table ft
super drop server srv cascade
create extension citext schema s
super alter extension plpgsql add function s.f(int)
super alter extension plpgsql add table s.p
super insert into pg_seclabel values ('s.p'::regclass, 'pg_class'::regclass, 0, 'provider', 'label')
super update pg_attribute set attstattarget = 3 where attrelid = 'p'::regclass and attname = 'a'
super update pg_proc set provolatile = 'i' where proname = 'f' and pronamespace = 's'::regnamespace
do $$ begin execute 'alter table p alter a set default 77'; end $$
do $$ begin drop view vw cascade; create view vw as select id, a from p; end $$
do $$ begin drop type rng; create type rng as range(subtype = int4); end $$
alone create index concurrently ci on p(b)
alone drop index concurrently ch_v
alone alter table pa detach partition pa1 concurrently
alone reindex index concurrently p_pkey; reindex index concurrently ch_pkey
""")
"""What leaves the set otherwise than it was."""

SMALL = "create schema small; create table small.only(id int)"

FIRST = _table("""
create table small.n()
create view small.n as select 1 as one
create sequence small.n
create type small.n as (x int)
create type small.n as enum()
create type small.n as range(subtype = int4)
create domain small.n as int
create function small.n() returns int language sql as 'select 1'
create function public.n(small.only) returns int language sql as 'select 1'
create operator small.- (rightarg = int, function = int4um)
create aggregate small.n(int)(sfunc = int4pl, stype = int)
create collation small.n (locale = 'C', provider = libc)
create conversion small.n for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8
create text search configuration small.n (copy = simple)
create text search dictionary small.n (template = simple)
super create operator family small.n using btree
create extension citext schema small
alter default privileges in schema small grant select on tables to other
create index on small.only(id)
create unique index on small.only(id)
create statistics small.n on id, (id + 1) from small.only
create trigger n before insert on small.only for each row execute function suppress_redundant_updates_trigger()
create rule n as on delete to small.only do instead nothing
create policy n on small.only using (true)
create publication n for table small.only
15+ super create publication n for tables in schema small
create cast (small.only as text) with inout
create table public.n() inherits (small.only)
create table public.n(x small.only)
create table public.n(x small.only[])
alter table small.only add primary key (id)
alter table small.only add check (id > 0)
alter table small.only alter id set default 5
alter table small.only alter id set not null
alter table small.only alter id type bigint
alter table small.only add x text
alter table small.only add generated_always int generated always as (id) stored
alter table small.only enable row level security
alter table small.only rename to n
comment on schema small is 'x'
comment on table small.only is 'x'
comment on column small.only.id is 'x'
comment on type small.only is 'x'
grant usage on schema small to other
grant select (id) on small.only to other
super alter extension plpgsql add table small.only
""")
"""What makes the first object of its kind in a schema that holds one table."""

HARMLESS = _table("""
truncate p cascade
truncate p restart identity cascade
truncate ul
insert into p(b) values ('q')
update p set b = 'zz'
delete from ch
select nextval('p_id_seq')
select setval('sq', 50)
alter sequence sq restart
alter sequence sq restart with 100
alter table p alter g restart
analyze p
analyze
vacuum p
vacuum full p
vacuum full
vacuum (freeze, analyze) p
vacuum
cluster marked
cluster marked using marked_pkey
cluster
reindex table p
reindex index ch_v
reindex index ch_u
reindex schema s
reindex table concurrently p
reindex table concurrently ch
reindex table concurrently marked
reindex index concurrently ch_v
reindex index concurrently mvu
reindex schema concurrently s
refresh materialized view mv
refresh materialized view concurrently mv
begin; alter table p add column zz int; create table n(x int); drop view vw cascade; rollback
begin; savepoint a; alter table p drop column b; rollback to a; commit
begin; lock table p in access exclusive mode; commit
do $$ begin alter table p add column zz int; raise 'x'; exception when others then null; end $$
prepare q as select 1
notify x
listen x
create temp table only_here(x int)
create temp view of_nothing as select 1
create temp table of_ours as select * from s.p
create temp table like_ours (like s.p including all)
create temp table typed_as_ours (e s.en, c s.comp, d s.dom)
create temp view on_ours as select id, a from s.p
create temp sequence only_here_too
create function pg_temp.on_ours(s.en) returns s.comp language sql as 'select null::s.comp'
create trigger ours before insert on typed_as_ours for each row execute function trf()
discard temp
create temp table dropped_at_once (e s.en) on commit drop
set work_mem = '8MB'
create table if not exists p(id int)
create table if not exists n_of_temp(x int); drop table n_of_temp
create index if not exists ch_v on ch(v)
create sequence if not exists sq
create schema if not exists s
create materialized view if not exists mv as select 1
alter table p add column if not exists b text
alter table if exists nothing_there add column x int
drop table if exists nothing_there
create or replace function f(int) returns int language sql as 'select $1'
create or replace view vw as select id, a from p
create or replace trigger tr before insert on p for each row execute function trf()
create or replace rule ru as on update to inh_d do also nothing
create or replace aggregate agg(int)(sfunc = int4pl, stype = int, initcond = '0')
alter table p alter a set default 1
alter table p alter a set not null
alter table p alter b drop not null
alter table p alter b set default 'x'; alter table p alter b drop default
alter table p owner to current_user
alter table p set logged
alter table p disable row level security
alter table p disable trigger tr; alter table p enable trigger tr
alter table p set (fillfactor = 50); alter table p reset (fillfactor)
alter table p rename to p9; alter table p9 rename to p
alter table marked cluster on marked_pkey
alter table ch validate constraint fk
alter type en add value if not exists 'a'
create policy gone on p using (true); drop policy gone on p
create table gone(id serial primary key, e en); drop table gone
create type gone as enum('a'); drop type gone
create index gone on p(b); drop index gone
drop index ch_v; create index ch_v on ch(v)
grant select on ch to other
grant select (a) on p to other
grant all on p to current_user
grant select on p to public; revoke select on p from public
grant execute on function f(int) to public
grant usage on schema s to other
grant usage on type en to other; revoke usage on type en from other
revoke update on p from other
alter default privileges in schema t grant select on tables to other
alter default privileges grant all on types to other; alter default privileges revoke all on types from other
comment on table ch is 'x'
comment on column ch.v is 'x'
comment on table p is null
comment on table p is 'x'; comment on table p is null
create table public.on_its_own(id serial primary key, v text); drop table public.on_its_own
""")
"""What must not cost a rebuild. These are committed, one after the other."""

ELSEWHERE = _table("""
create schema zz
create table public.zz(x int)
create view public.zz as select 1 as one
create type public.zz as enum('a')
create function public.zz() returns int language sql as 'select 1'
create function public.zz() returns int language sql as 'select count(*)::int from s.p'
alter table public.elsewhere add column x int
comment on table public.elsewhere is 'x'
grant select on public.elsewhere to other
drop table public.elsewhere
drop view public.elsewhere_view
create extension citext schema public
super create publication pub3 for all tables
create publication pub4
alter publication pub set (publish = 'insert')
alter publication pub rename to pub9
super alter foreign data wrapper w options (add a 'b')
super alter server srv options (add host 'x')
super create server srv2 foreign data wrapper w
super create access method am2 type table handler heap_tableam_handler
super create cast (int as box) with inout
super create event trigger evt3 on sql_drop execute function public.elsewhere_evf()
super create trusted language lang handler plpgsql_call_handler
alter database fingerprinted set work_mem = '1MB'
super alter role other in database fingerprinted set work_mem = '1MB'
comment on publication pub is 'x'
""")
"""What lies in the database but not in the set: a fingerprint of the set does not see it, one of the
database does.
"""

BEYOND = _table("""
super create role third
super alter role other set search_path = s
super alter role other createdb
super grant pg_monitor to other
super comment on role other is 'x'
super create user mapping for other server srv options (a 'b')
alter database fingerprinted connection limit 50
comment on database fingerprinted is 'x'
grant connect on database fingerprinted to other
super alone alter system set work_mem = '8MB'
select lo_create(0)
""")
"""What no fingerprint sees."""
