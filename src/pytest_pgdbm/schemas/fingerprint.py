"""The proof that a set of schemas is structurally what it was: taken after the build, looked at
after each test.

Two looks. The quick one sees every row that DDL writes in the system catalogs, be it to no effect,
and what TRUNCATE and its like write there too. Only when it finds something does the long look
compare what the rows mean.

Not seen, as it lies in no schema: roles and their settings, tablespaces, servers and wrappers for
foreign data and their options, publications (but which tables they are of is seen), access methods,
other schemas. A fingerprint of a whole database sees all of these but the first two. Never seen are
planner statistics and what is data: rows, sequences' values, large objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import asyncpg

from pytest_pgdbm.schemas.fingerprints.anatomy import Anatomy, Scope, find_scope, read_anatomy
from pytest_pgdbm.schemas.fingerprints.differences import differences
from pytest_pgdbm.schemas.fingerprints.meaning import Line, Meaning
from pytest_pgdbm.schemas.fingerprints.versions import row_versions


class Fingerprint(NamedTuple):
    """What schemas were like.

    `quick` and `meaning` are SQL expressions that hold no parameters and yield a text;
    `quick_value` and `meaning_value` are the texts they yielded. An equal `quick` proves that no
    DDL has been committed since. Plan it once: in a prepared statement or a function, on a
    connection with `jit` off.
    """

    anatomy: Anatomy
    quick: str
    quick_value: str
    meaning: str
    meaning_value: str
    lines: Sequence[Line]


class Verdict(NamedTuple):
    """Whether schemas are what they were. `changes` says in a few words what is not; empty if all
    is.

    `fingerprint` is the one to look with from now on, if nothing changed.
    """

    fingerprint: Fingerprint
    changes: str = ""

    @property
    def same(self) -> bool:
        """Nothing that DDL could have changed has changed."""
        return not self.changes


async def take(connection: asyncpg.Connection, schemas: Sequence[str] | None) -> Fingerprint:
    """The fingerprint of all these schemas together, or of the whole database for None.

    Taken when nobody else works in them. Any role may take it. Raises LookupError for a schema that
    is not there.
    """
    return await _take(connection, await find_scope(connection, schemas))


async def still(connection: asyncpg.Connection, fingerprint: Fingerprint) -> Verdict:
    """Looks whether the schemas are what they were when the fingerprint was taken.

    What a transaction has not committed yet is not seen: whoever is still at work has to be found
    before.
    """
    quick_value = await connection.fetchval(f"select {fingerprint.quick}")
    if quick_value == fingerprint.quick_value:
        return Verdict(fingerprint)
    return await look_closely(connection, fingerprint, quick_value)


async def look_closely(connection: asyncpg.Connection, fingerprint: Fingerprint, quick_value: str) -> Verdict:
    """The long look, for when `quick` yielded this other value."""
    value = await connection.fetchval(f"select {fingerprint.meaning}")
    if value == fingerprint.meaning_value:
        return Verdict(fingerprint._replace(quick_value=quick_value))
    if _means(value) == _means(fingerprint.meaning_value):
        # The same by name, but made anew: with other OIDs.
        return Verdict(await _take(connection, fingerprint.anatomy.scope))
    return Verdict(fingerprint, await _changes(connection, fingerprint))


async def _take(connection: asyncpg.Connection, scope: Scope) -> Fingerprint:
    anatomy = await read_anatomy(connection, scope)
    quick = await row_versions(connection, anatomy)
    quick_value = await connection.fetchval(f"select {quick}")
    meaning = await Meaning.of(connection, anatomy)
    lines = await meaning.lines(connection)
    digest = f"{len(lines)}:{sum(line.hash for line in lines)}"
    objects = [oid for oids in anatomy.objects.values() for oid in oids]
    value = f"{digest}/{len(objects)}:{sum(objects)}"
    return Fingerprint(anatomy, quick, quick_value, meaning.digest(), value, lines)


async def _changes(connection: asyncpg.Connection, fingerprint: Fingerprint) -> str:
    now = await read_anatomy(connection, fingerprint.anatomy.scope)
    meaning = await Meaning.of(connection, replace(now, newest=fingerprint.anatomy.newest))
    return differences(fingerprint.lines, await meaning.lines(connection)) or "changed: something that has no name"


def _means(value: str) -> str:
    return value.partition("/")[0]
