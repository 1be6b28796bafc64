"""How the rows of one system catalog are said: which of their columns mean something, and what a
row is called.

What changes without DDL is left out. What may be made anew without a difference stands there by its
name: indexes (`REINDEX CONCURRENTLY`) and defaults. All else keeps its OID, by which sessions
remember it. https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_pgdbm.schemas.fingerprints.anatomy import RELATION, Part

VOLATILE = [
    *("relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid", "relminmxid"),
    *("relhasindex", "relhasrules", "relhastriggers", "relhassubclass", "reltoastrelid", "relrewrite"),
    *("indcheckxmin", "attcacheoff", "atthasmissing", "attmissingval"),
]
"""What VACUUM, ANALYZE, TRUNCATE, CLUSTER or the first use of a table change, and what only says
where the rest is.
"""

# Columns with the OID of an index, or of what may be one.
_OF_INDEXES = frozenset({"attrelid", "indexrelid", "conindid", "inhrelid", "inhparent", "tgconstrindid"})

# From this version on the stored expressions do not say any more where in the statement each part
# of them stood.
_NO_PLACES = 17
_PLACE = r" :(location|stmt_location|stmt_len) -?\d+"

# What stands for the relation `c`, and what it is called.
_STANDS = (
    "case when c.relkind in ('i', 'I') then pg_catalog.hashtextextended(c.relname::text, c.relnamespace::int8)"
    " else c.oid::int8 end"
)
_CALLED = "c.relnamespace::regnamespace::text || '.' || c.relname"
_OF = "(select {} from pg_catalog.pg_class c where c.oid = t.{})"

# No privileges and the default ones are the same.
# https://www.postgresql.org/docs/current/ddl-priv.html
_DEFAULT_PRIVILEGES = {
    "relacl": "case t.relkind when 'S' then 's' else 'r' end::\"char\", t.relowner",
    "nspacl": "'n', t.nspowner",
    "proacl": "'f', t.proowner",
    "typacl": "'T', t.typowner",
}

_ANEW = {
    ("pg_class", "oid"): "case when t.relkind in ('i', 'I') then 0 else t.oid::int8 end",
    ("pg_attrdef", "oid"): None,
    ("pg_default_acl", "oid"): None,
}

_MORE = {
    # What is set with "toast." before its name. What the table for it is else follows from the
    # columns.
    "pg_class": ["(select o.reloptions from pg_catalog.pg_class o where o.oid = t.reltoastrelid)"],
    # A row that violates two unique indexes is refused in the name of the older one.
    "pg_index": [
        "pg_catalog.rank() over (partition by t.indrelid, t.indisunique or t.indisexclusion"
        " order by case when t.indisunique or t.indisexclusion then t.indexrelid end)"
    ],
    # Whose it is: ALTER SEQUENCE … OWNED BY.
    "pg_sequence": [
        "(select pg_catalog.sum(pg_catalog.hash_record_extended(row(d.refobjid, d.refobjsubid, d.deptype), 0))"
        " from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = t.seqrelid"
        " and d.deptype in ('a', 'i'))"
    ],
}

_LABELS = {
    "pg_aggregate": "t.aggfnoid::regprocedure::text",
    "pg_attrdef": _OF.format(_CALLED, "adrelid") + " || '.' || (select a.attname from pg_catalog.pg_attribute a"
    " where a.attrelid = t.adrelid and a.attnum = t.adnum)",
    "pg_attribute": _CALLED + " || '.' || case when t.attisdropped then '(dropped)' else t.attname end",
    "pg_default_acl": "t.defaclrole::regrole::text || ' in ' || t.defaclnamespace::regnamespace::text",
    "pg_enum": "t.enumtypid::regtype::text || '.' || t.enumlabel",
    "pg_proc": "t.pronamespace::regnamespace::text || '.' || t.proname"
    " || '(' || pg_catalog.pg_get_function_identity_arguments(t.oid) || ')'",
    "pg_range": "t.rngtypid::regtype::text",
    "pg_ts_config_map": "t.mapcfg::regconfig::text",
}

# What is rare, and has no name or not only one.
_DESCRIBED = frozenset(
    {"pg_amop", "pg_amproc", "pg_cast", "pg_operator", "pg_publication_namespace", "pg_publication_rel", "pg_transform"}
)


# All that can be set of a table's system columns are privileges.
_ONLY = {"pg_attribute": " and (t.attnum > 0 or t.attacl is not null)"}


def stand_in(classid: str, objid: str) -> str:
    """An SQL expression for what stands for an object that these columns of `t` name."""
    relation = _OF.format(_STANDS, objid)
    return f"case t.{classid} when 'pg_catalog.pg_class'::regclass then {relation} else t.{objid}::int8 end"


class Rows(NamedTuple):
    """Rows of a catalog, on a server of version `major`. `columns` are name and type of all but the
    volatile ones.
    """

    part: Part
    columns: Sequence[tuple[str, str]]
    major: int

    def sql(self) -> str:
        """A query for catalog, label and hash of each row of the objects in `list(classid, oids)`."""
        part = self.part
        values = [value for name, kind in self.columns if (value := self._value(name, kind))]
        values += _MORE.get(part.catalog, [])
        ours = f"any((select l.oids from list l where l.classid = 'pg_catalog.{part.of}'::regclass)::oid[])"
        where = f"pg_catalog.{part.catalog} t where t.{part.key} = {ours}"
        if self._in_relation():
            where = (
                f"pg_catalog.pg_class c join pg_catalog.{part.catalog} t on t.{part.key} = c.oid where c.oid = {ours}"
            )
        hashed = f"pg_catalog.hash_record_extended(row({', '.join(values)}), 0)"
        return f"select '{part.catalog}', coalesce({self._label()}, '?'), {hashed} from {where}"

    def _in_relation(self) -> bool:
        return self.part.of == "pg_class" != self.part.catalog

    def _value(self, name: str, kind: str) -> str | None:
        """What of a column is hashed; None for nothing."""
        if (self.part.catalog, name) in _ANEW:
            return _ANEW[self.part.catalog, name]
        if name in _OF_INDEXES:
            return _STANDS if self._in_relation() and name == self.part.key else _OF.format(_STANDS, name)
        if name in _DEFAULT_PRIVILEGES:
            return f"coalesce(t.{name}, pg_catalog.acldefault({_DEFAULT_PRIVILEGES[name]}))"
        if kind != "pg_node_tree":
            return f"t.{name}"
        text = f"t.{name}::text"
        return text if self.major >= _NO_PLACES else f"pg_catalog.regexp_replace({text}, '{_PLACE}', '', 'g')"

    def _label(self) -> str:
        catalog = self.part.catalog
        if catalog in _LABELS:
            return _LABELS[catalog]
        if catalog in _DESCRIBED:
            return f"pg_catalog.pg_describe_object('pg_catalog.{catalog}'::regclass, t.oid, 0)"
        if self._in_relation():
            return _CALLED
        return self._name()

    def _name(self) -> str:
        """By the columns that are there: a relation's or a schema's name and its own."""
        name = next((f"t.{name}::text" for name, kind in self.columns if kind == "name"), f"t.{self.part.key}::text")
        if relation := RELATION.get(self.part.catalog):
            return f"coalesce({_OF.format(_CALLED, relation)} || '.', '') || {name}"
        schema = next((name for name, _ in self.columns if name.endswith("namespace")), None)
        return f"t.{schema}::regnamespace::text || '.' || {name}" if schema else name
