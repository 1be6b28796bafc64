"""Those that sets are leased to. Loads neither asyncpg nor pgdbm, which may be loaded while a server starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.settings import Isolation

if TYPE_CHECKING:
    from pytest_pgdbm.connections.manager import Database
    from pytest_pgdbm.leasing.stock import Stock
    from pytest_pgdbm.schemas.plan import BuiltSet


@dataclass
class Leased:
    """A set that a tenant has, and its managers by service."""

    built: BuiltSet
    managers: dict[str, Database]
    stock: Stock | None


@dataclass
class Tenant:
    """A test, or the class, module, package or session of a wider fixture: `label` is its id.

    `path` is the search path that its marker chose, `reuse` whether its sets may have been leased before, `isolation`
    where its services live unless it asks for a database, `fixtures` the names of the fixtures that lease through it
    and `services` what was asked for by name.
    """

    label: str
    path: SearchPath | None = None
    reuse: bool = True
    isolation: Isolation = "schema"
    fixtures: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    term: Term = field(init=False)
    sets: dict[tuple[object, ...], Leased] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        """Its term begins."""
        self.term = Term(self.label)
