"""What is not as it was, in a few words for a person."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from pytest_pgdbm.schemas.fingerprints.meaning import Line

_MOST = 4

# The first to be named. What comes with a relation is not named besides it.
_ORDER = ("pg_namespace", "pg_class", "pg_type", "pg_proc", "pg_attribute", "pg_attrdef", "pg_constraint", "pg_index")

_NOUNS = {
    "pg_amop": "",
    "pg_amproc": "",
    "pg_attrdef": "default of",
    "pg_attribute": "column",
    "pg_cast": "",
    "pg_class": "relation",
    "pg_db_role_setting": "settings",
    "pg_default_acl": "default privileges of",
    "pg_depend": "tie to an extension of",
    "pg_description": "comment on",
    "pg_enum": "value",
    "pg_inherits": "parent of",
    "pg_namespace": "schema",
    "pg_opclass": "operator class",
    "pg_operator": "",
    "pg_opfamily": "operator family",
    "pg_proc": "function",
    "pg_publication_namespace": "",
    "pg_publication_rel": "",
    "pg_replication_slots": "replication slot",
    "pg_rewrite": "rule",
    "pg_seclabel": "security label of",
    "pg_statistic_ext": "statistics",
    "pg_transform": "",
    "pg_ts_config": "text search configuration",
    "pg_ts_config_map": "mapping of",
    "pg_ts_dict": "text search dictionary",
    "pg_ts_parser": "text search parser",
    "pg_ts_template": "text search template",
}

Key = tuple[str, str]
"""A catalog and the label of a row."""


def differences(before: Sequence[Line], now: Sequence[Line]) -> str:
    """As in `new: relation s.n; changed: column s.p.b`; at most four of each, and how many more."""
    old, new = _hashes(before), _hashes(now)
    groups = {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "changed": {key for key in new.keys() & old.keys() if old[key] != new[key]},
    }
    said = [f"{word}: {listed}" for word, keys in groups.items() if (listed := _listed(keys))]
    return "; ".join(said) or ("changed: triggers of foreign keys" if any(groups.values()) else "")


def _hashes(lines: Iterable[Line]) -> Mapping[Key, list[int]]:
    hashes: dict[Key, list[int]] = {}
    for line in lines:
        if line.catalog != "kinds":
            hashes.setdefault((line.catalog, line.label), []).append(line.hash)
    return {key: sorted(each) for key, each in hashes.items()}


def _listed(keys: Collection[Key]) -> str:
    relations = {label for catalog, label in keys if catalog == "pg_class"}
    types = {label for catalog, label in keys if catalog == "pg_type"} | relations
    apart = sorted((key for key in keys if not _is_implied(key, relations, types)), key=_rank)
    words = [f"{_NOUNS.get(catalog, catalog[3:].replace('_', ' '))} {label}".strip() for catalog, label in apart]
    return ", ".join(words[:_MOST]) + (f" and {len(words) - _MOST} more" if len(words) > _MOST else "")


def _is_implied(key: Key, relations: Set[str], types: Set[str]) -> bool:
    """Whether it comes with a relation, or is the type for arrays of one, or a trigger of a foreign
    key.
    """
    catalog, label = key
    if catalog == "pg_class":
        return False
    if catalog == "pg_type" and label.replace("._", ".", 1) in types - {label}:
        return True
    whole = label
    while whole and whole not in relations:
        whole = whole.rpartition(".")[0]
    return bool(whole) or ".RI_ConstraintTrigger_" in label


def _rank(key: Key) -> tuple[int, str]:
    catalog, label = key
    return _ORDER.index(catalog) if catalog in _ORDER else len(_ORDER), label
