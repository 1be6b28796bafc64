"""What a set is to be built from: its services in the order of their needs, with what was read from disk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.ground.errors import PgdbmWarning
from pytest_pgdbm.schemas.proof import Proof
from pytest_pgdbm.services.files import SqlFile, sort_warning
from pytest_pgdbm.services.service import Service
from pytest_pgdbm.settings import Isolation


class Member(NamedTuple):
    """One service of a set: its declaration, its migration files as they were read, the extensions it needs."""

    name: str
    service: Service
    files: tuple[SqlFile, ...]
    extensions: frozenset[str] = frozenset()


class Plan(NamedTuple):
    """A set to build: its members, each after those that it needs, and the key that tells it from other sets.

    `isolation` is where it lives: as schemas of a shared database, or in a database of its own.
    """

    key: tuple[object, ...]
    members: tuple[Member, ...]
    isolation: Isolation = "schema"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its services."""
        return tuple(member.name for member in self.members)


@dataclass(frozen=True, eq=False)
class BuiltSet:
    """A set on the server: which schema of which database stands for which service. No two are the same."""

    plan: Plan
    schemas: Mapping[str, str]
    database: str


class Manner(NamedTuple):
    """How a run builds: the mark on its schemas, its search path, the seconds that a migration may take.

    Without a mark the schemas are to look as in production, and have the same names whenever they are built.
    """

    proof: Proof | None
    path: SearchPath
    timeout: float | None


def warn_of_order(plan: Plan) -> None:
    """Warns where pgdbm runs a service's migrations in another order than their numbers say."""
    for member in plan.members:
        if odd := sort_warning(member.files):
            warnings.warn(f"service {member.name!r}: {odd}", PgdbmWarning, stacklevel=2)
