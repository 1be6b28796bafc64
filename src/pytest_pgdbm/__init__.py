"""A real Postgres, and a freshly migrated schema for every test of a pgdbm service.

`pgdbm_db("users")` in a conftest makes a fixture; the rest are types for annotations, errors and warnings. All of it is
loaded when it is used first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.loading import prefer_compiled

if TYPE_CHECKING:
    from pytest_pgdbm.connections.manager import Database
    from pytest_pgdbm.fixtures import pgdbm_database, pgdbm_db
    from pytest_pgdbm.ground.endpoint import PgdbmServer
    from pytest_pgdbm.ground.errors import (
        BuildError,
        ConfigError,
        LeaseEnded,
        LeaseLost,
        MigrationsError,
        NoConnection,
        NoServer,
        PgdbmError,
        PgdbmLeakWarning,
        PgdbmWarning,
        SeedError,
        UnknownService,
    )
    from pytest_pgdbm.leasing.factory import DatabaseFactory, Lease
    from pytest_pgdbm.leasing.whole import WholeDatabase, WholeDatabaseFactory
    from pytest_pgdbm.services.service import Seed, Service

__all__ = [
    "BuildError",
    "ConfigError",
    "Database",
    "DatabaseFactory",
    "Lease",
    "LeaseEnded",
    "LeaseLost",
    "MigrationsError",
    "NoConnection",
    "NoServer",
    "PgdbmError",
    "PgdbmLeakWarning",
    "PgdbmServer",
    "PgdbmWarning",
    "Seed",
    "SeedError",
    "Service",
    "UnknownService",
    "WholeDatabase",
    "WholeDatabaseFactory",
    "pgdbm_database",
    "pgdbm_db",
]

prefer_compiled()

_HOME = {
    "Database": "connections.manager",
    "DatabaseFactory": "leasing.factory",
    "Lease": "leasing.factory",
    "PgdbmServer": "ground.endpoint",
    "Seed": "services.service",
    "Service": "services.service",
    "WholeDatabase": "leasing.whole",
    "WholeDatabaseFactory": "leasing.whole",
    "pgdbm_database": "fixtures",
    "pgdbm_db": "fixtures",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'ground.errors')}"), name)


def __dir__() -> list[str]:
    return __all__
