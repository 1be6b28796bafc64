"""What `pgdbm_database` is in a test: a callable that leases whole databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_pgdbm.ground.errors import ConfigError, UnknownService, plainly
from pytest_pgdbm.leasing.factory import DatabaseFactory, Lease
from pytest_pgdbm.services.declarations import check_name

if TYPE_CHECKING:
    import asyncpg

    from pytest_pgdbm.connections.manager import Database


class WholeDatabase:
    """A throw-away database with services in it, under their real names.

    `database["users"]` is the `Database` of a service, whose schema is called as in production. `services` are all
    that are in it: those that were asked for, and what they need.
    """

    def __init__(self, managers: Mapping[str, Database]) -> None:
        """Made by the plugin; tests get it from `pgdbm_database`."""
        self._managers = dict(managers)

    @property
    def url(self) -> str:
        """The URL of this database, over TCP; its `repr` hides the password."""
        return self._one.dsn

    @property
    def pool(self) -> asyncpg.Pool:
        """The `asyncpg.Pool` of this database, in whatever event loop it is used."""
        return self._one.pool

    @property
    def services(self) -> tuple[str, ...]:
        """The names of its services, each after those that it needs."""
        return tuple(self._managers)

    def __getitem__(self, service: str) -> Database:
        """The manager of a service. Raises UnknownService if that is not in this database."""
        if service not in self._managers:
            advice = f"it is not in this database; to have it there: pgdbm_database(…, {service!r})"
            raise UnknownService(service, self._managers, advice=advice)
        return self._managers[service]

    def __contains__(self, service: object) -> bool:
        """Whether a service is in this database."""
        return service in self._managers

    def __iter__(self) -> Iterator[str]:
        """The names of its services."""
        return iter(self._managers)

    def __repr__(self) -> str:
        """Its services."""
        return f"<WholeDatabase of {', '.join(map(repr, self._managers))}>"

    @property
    def _one(self) -> Database:
        return next(iter(self._managers.values()))


class WholeDatabaseFactory:
    """Leases whole databases to one test.

    `await pgdbm_database("users", "orders")` gives a `WholeDatabase` with these services and what they need, the same
    one however often the test asks for the same; `pgdbm_database()` one with all services that the test knows.
    `fresh=True` gives another, new one. In a synchronous test: `pgdbm_database("users").get()`.
    """

    def __init__(self, factory: DatabaseFactory) -> None:
        self._factory = factory

    def __call__(self, *services: str, fresh: bool = False) -> Lease[WholeDatabase]:
        """Asks for a database; see the class. Raises UnknownService for a service that is declared nowhere."""
        __tracebackhide__ = True
        try:
            for name in services:
                check_name(name, "pgdbm_database")
        except ConfigError as error:
            raise plainly(error) from None
        return self._factory.ask_database(services, WholeDatabase, fresh=fresh)
