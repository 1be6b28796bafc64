"""SQL that finds its way through the system catalogs: in which schema an object lies, and what belongs to schemas.

What depends on what is in https://www.postgresql.org/docs/current/catalog-pg-depend.html
"""

from __future__ import annotations

IN_A_SCHEMA = {
    "pg_class": "rel",
    "pg_type": "typ",
    "pg_proc": "pro",
    "pg_constraint": "con",
    "pg_operator": "opr",
    "pg_opclass": "opc",
    "pg_opfamily": "opf",
    "pg_collation": "coll",
    "pg_conversion": "con",
    "pg_ts_config": "cfg",
    "pg_ts_dict": "dict",
    "pg_ts_parser": "prs",
    "pg_ts_template": "tmpl",
    "pg_statistic_ext": "stx",
    "pg_extension": "ext",
}
"""Catalogs of objects that lie in a schema: their columns are called `relname` and `relnamespace`, for `rel`."""

IN_NO_SCHEMA = {
    "pg_am": "amname",
    "pg_cast": "''",
    "pg_default_acl": "''",
    "pg_event_trigger": "evtname",
    "pg_foreign_data_wrapper": "fdwname",
    "pg_foreign_server": "srvname",
    "pg_language": "lanname",
    "pg_namespace": "nspname",
    "pg_publication": "pubname",
    "pg_transform": "''",
}
"""Catalogs of objects that belong to the whole database, as far as every role may read them: what they are called."""

# Objects that are part of another one, with the column that says of which.
_PART_OF = {
    "pg_attrdef": ("adrelid", "pg_class"),
    "pg_rewrite": ("ev_class", "pg_class"),
    "pg_trigger": ("tgrelid", "pg_class"),
    "pg_policy": ("polrelid", "pg_class"),
    "pg_amop": ("amopfamily", "pg_opfamily"),
    "pg_amproc": ("amprocfamily", "pg_opfamily"),
}


def home(classid: str, objid: str) -> str:
    """An SQL expression: the OID of the schema that an object lies in; null for one that lies in none, as a cast.

    `classid` and `objid` are SQL expressions that name the object as `pg_depend` does.
    """
    cases = [
        f"when 'pg_catalog.{catalog}'::regclass then (select {prefix}namespace from pg_catalog.{catalog}"
        f" where oid = {objid})"
        for catalog, prefix in IN_A_SCHEMA.items()
    ]
    cases += [
        f"when 'pg_catalog.{catalog}'::regclass then (select whole.{IN_A_SCHEMA[of]}namespace"
        f" from pg_catalog.{catalog} part join pg_catalog.{of} whole on whole.oid = part.{column}"
        f" where part.oid = {objid})"
        for catalog, (column, of) in _PART_OF.items()
    ]
    cases.append(f"when 'pg_catalog.pg_namespace'::regclass then {objid}")
    return f"case {classid} " + "\n".join(cases) + " end"


BELONGING = f"""
own(oid) as (select oid from pg_catalog.pg_namespace where nspname = any($1)),
neutral(oid) as (
    select oid from pg_catalog.pg_namespace where nspname ~ '^pg_(toast|temp)'
    union all
    select objid from pg_catalog.pg_depend where classid = 'pg_catalog.pg_namespace'::regclass and deptype = 'e'
),
belonging(classid, objid, objsubid, inside, via) as (
    select 'pg_catalog.pg_namespace'::regclass::oid, oid, 0, true, oid from own
    union
    select d.classid, d.objid, d.objsubid,
        d.deptype in ('e', 'i')
            or coalesce(
                h.home = any(array(select oid from own)) or h.home = any(array(select oid from neutral)),
                d.classid <> 'pg_catalog.pg_foreign_server'::regclass and not exists (
                    select from pg_catalog.pg_depend r
                    cross join lateral (select {home("r.refclassid", "r.refobjid")} as home offset 0) f
                    where r.classid = d.classid and r.objid = d.objid
                        and f.home <> all(array(select oid from own)) and f.home <> 'pg_catalog'::regnamespace
                )
            ),
        b.via
    from belonging b
    join pg_catalog.pg_depend d on d.refclassid = b.classid and d.refobjid = b.objid
    cross join lateral (select {home("d.classid", "d.objid")} as home offset 0) h
    where b.inside
)
"""
"""Common table expressions, for after `with recursive`: `$1` are the names of schemas, `belonging` what goes with them.

Rows with `inside` are theirs: what lies in them, its parts (also the triggers of a foreign key on the other table),
the members of extensions that are installed in them, and what lies in no schema (a cast, an event trigger) and refers
to nothing in another one, but for a foreign server. The other rows depend on them from outside; nothing is looked for
beyond those. `via` is the schema through which a row was found. What lies in schemas of extensions, among temporary
objects or in toast counts as its table's.
"""

INSIDE = """
own(oid) as (select oid from pg_catalog.pg_namespace where nspname = any($1)),
inside(classid, objid) as (
    select 'pg_catalog.pg_namespace'::regclass::oid, oid from own
    union
    select d.classid, d.objid
    from inside i join pg_catalog.pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid
    where (d.deptype <> 'n' or d.refclassid = 'pg_catalog.pg_namespace'::regclass)
        and not exists (
            select from pg_catalog.pg_depend h
            where h.classid = d.classid and h.objid = d.objid
                and h.refclassid = 'pg_catalog.pg_namespace'::regclass and h.refobjid <> all(array(select oid from own))
        )
)
"""
"""As `BELONGING`, but only what surely lies in the schemas `$1` or is part of that; much quicker to plan and to run.

Every plan is made anew after a schema was made or dropped, so what each test needs must be simple.
"""

IDENTITY = """
cross join lateral (select case when {0}.classid = 'pg_catalog.pg_rewrite'::regclass
    then (select ev_class from pg_catalog.pg_rewrite
    where oid = {0}.objid and rulename = '_RETURN') end as relation offset 0) ruled
cross join lateral pg_catalog.pg_identify_object(
    case when ruled.relation is null then {0}.classid else 'pg_catalog.pg_class'::regclass end,
    coalesce(ruled.relation, {0}.objid),
    {0}.objsubid
) identity
"""
"""A join, to be formatted with an alias: `identity.type` and `identity.identity` name its object, a view for its rule.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-OBJECT
"""
