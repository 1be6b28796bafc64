"""What a run must know of a database that an earlier one has kept, and the bytes that it is written as.

They are a pickle. Nobody but the caller's own runs can have written it (`keeper.waiting` sees to that), what is read
are only the classes named here, whose instances hold plain values, and whatever another version of the plugin, of
Python, of pgdbm or of the server has written counts as nothing, as does what cannot be read.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

from pytest_pgdbm.schemas.fingerprint import Fingerprint
from pytest_pgdbm.schemas.fingerprints.anatomy import Anatomy, Scope
from pytest_pgdbm.schemas.fingerprints.meaning import Line
from pytest_pgdbm.schemas.kept.outside import Outside
from pytest_pgdbm.schemas.recycling.inventory import Inventory, Relation
from pytest_pgdbm.schemas.recycling.pristine import Pristine
from pytest_pgdbm.schemas.recycling.rows import copy_of
from pytest_pgdbm.schemas.recycling.seeded import SeededRows

MOST_BYTES_OF_ROWS = 64 << 20
"""A set that was seeded with more is not kept: to read and write that takes longer than to build."""

_FORMAT = 6


class Entry(NamedTuple):
    """A set that waits: the digest of its content, its schemas by service, and what it was like, as bytes.

    `inside` are the OIDs of all that is the set's.
    """

    content: str
    schemas: Mapping[str, str]
    inside: Sequence[int]
    pristine: bytes

    @classmethod
    def of(cls, content: str, schemas: Mapping[str, str], pristine: Pristine) -> Entry | None:
        """The set as it is now; None for one with too many rows."""
        rows = {oid: each.content() for oid, each in pristine.copies.items()}
        if sum(map(len, rows.values())) > MOST_BYTES_OF_ROWS:
            return None
        inside = pristine.fingerprint.anatomy.everything
        return cls(content, dict(schemas), inside, pickle.dumps((replace(pristine, copies={}), rows)))

    def read(self) -> Pristine:
        """What the set was like. Raises Unreadable."""
        loaded: tuple[Pristine, Mapping[int, bytes]] = _loaded(self.pristine)
        pristine, rows = loaded
        relations = pristine.inventory.relations
        pristine.copies = {oid: copy_of(relations[oid], data) for oid, data in rows.items()}
        return pristine


class Record(NamedTuple):
    """A database that waits: the runs that have made schemas in it, what it is like outside of its sets, these."""

    runs: frozenset[str]
    outside: Outside
    entries: Sequence[Entry]

    def write(self, server: str) -> bytes:
        """The record as bytes. `server` is the version of the server that it is of."""
        data = pickle.dumps(self)
        told = {"sets": len(self.entries), **_told(server, data)}
        return json.dumps(told).encode() + b"\n" + data

    @classmethod
    def read(cls, data: bytes, server: str) -> Record | None:
        """The record of these bytes; None if it cannot be read, or was written by something else than this."""
        first, _, rest = data.partition(b"\n")
        try:
            told = json.loads(first)
            if {**told, **_told(server, rest)} != told:
                return None
            record = _loaded(rest)
        except (Unreadable, ValueError, TypeError):
            return None
        return record if isinstance(record, cls) else None


class Unreadable(Exception):
    """What was to be read is not what was written."""


def _told(server: str, data: bytes) -> dict[str, Any]:
    """Who writes these data, and what shows that they are whole."""
    return {
        "format": _FORMAT,
        "plugin": version("pytest-pgdbm"),
        "pgdbm": version("pgdbm"),
        "python": platform.python_version(),
        "server": server,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


_CLASSES = {
    (each.__module__, each.__name__): each
    for each in (Record, Entry, Outside, Pristine, Fingerprint, Anatomy, Scope, Line, Inventory, Relation, SeededRows)
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CLASSES[module, name]
        except KeyError:
            if (module, name) == ("builtins", "frozenset"):
                return frozenset
            raise pickle.UnpicklingError(f"{module}.{name} is not read") from None


def _loaded(data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged data can raise anything
        raise Unreadable from error
