"""Opens the real pool of a loop as an application does: by `AsyncDatabaseManager.create_shared_pool`."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeAlias

import asyncpg
import pgdbm.core
import pgdbm.errors
from pgdbm import AsyncDatabaseManager, DatabaseConfig

from pytest_pgdbm.connections import backends, login, poolers
from pytest_pgdbm.connections.backends import Activity
from pytest_pgdbm.connections.budget import MOST_IN_POOL
from pytest_pgdbm.connections.cleaning import Clean, cleaner
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.connections.path import SearchPath
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ConfigError

PGDBM_PATH: str | None = getattr(pgdbm.core, "NEUTRAL_SEARCH_PATH", None)
"""What pgdbm pins the search path of a shared pool to by itself; 0.4 does not pin."""

End: TypeAlias = Callable[[Collection[int], str], Awaitable[dict[int, Activity]]]
"""Ends such server processes that serve connections of this name."""

_OURS = frozenset({"connection_string", "host", "port", "database", "user", "password", "schema"})


class Opening:
    """How this run's pools are opened. `options` are fields of `pgdbm.DatabaseConfig` that the application sets.

    `end` does the work of `end_backends` where the server has no connection to spare for it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        database: str,
        *,
        application_name: str,
        path: SearchPath,
        size: int,
        options: Mapping[str, Any],
        end: End | None = None,
    ) -> None:
        _check(options)
        self._end = end or self._end_by_another
        self._endpoint = endpoint
        self._database = database
        self._min_size = int(options.get("min_connections", 0))
        self._max_size = int(options.get("max_connections", max(size, self._min_size)))
        self._config = {
            "connection_string": login.pool_dsn(endpoint, database),
            **_unprepared(endpoint),
            # Where the share is smaller, it is not asyncpg that has them wait: its queue is without bound and silent.
            "max_connections": max(self._max_size, MOST_IN_POOL),
            "retry_attempts": 1,  # the server answered before; three more seconds would only hide the reason
            **_pinned(path),
            **options,
            "min_connections": 0,  # they are opened when the pool can find what is parked
        }
        settings = {"application_name": application_name, **(options.get("server_settings") or {})}
        if PGDBM_PATH is None and (fixed := path.for_pool(None)) is not None:
            settings["search_path"] = fixed
        self._settings = settings
        if not 0 <= self._min_size <= self.max_size:
            raise ConfigError(
                f"pgdbm_pool_options: min_connections is {self._min_size}; give a number from 0 to {self.max_size},"
                " which is max_connections"
            )

    @property
    def application_name(self) -> str:
        """What the pool's connections call themselves."""
        return str(self._settings["application_name"])

    @property
    def clean(self) -> Clean:
        """What cleans the sessions of the pool's connections."""
        return cleaner(self._endpoint.pooling)

    @property
    def min_size(self) -> int:
        """The connections that each loop's pool opens with."""
        return self._min_size

    @property
    def max_size(self) -> int:
        """The most connections of each loop's pool."""
        return self._max_size

    async def open(self) -> asyncpg.Pool:
        """A pool in the running loop. Raises what the server or the network said, as a pool in use would."""
        config = DatabaseConfig(**{**self._config, "server_settings": dict(self._settings)})
        try:
            pool = await AsyncDatabaseManager.create_shared_pool(config)
        except pgdbm.errors.ConnectionError as error:
            # Its message names localhost, whatever the URL.
            raise self._explained(error.__cause__ or error) from None
        except pgdbm.errors.ConfigurationError as error:
            raise self._explained(error) from None
        if self._endpoint.pooling != "none":
            await self._try(pool)
        self._pin_as_verified(config)
        return pool

    async def _try(self, pool: asyncpg.Pool) -> None:
        # What a pooler has against these connections it says to the first of them.
        try:
            async with pool.acquire():
                pass
        except FAILURES as error:
            pool.terminate()
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> BaseException:
        return poolers.explained(error, self._endpoint, self._database)

    def _pin_as_verified(self, config: DatabaseConfig) -> None:
        # pgdbm asks the server whether the pin holds, over a connection of each pool that it makes: once will do.
        pin = getattr(config, "shared_pool_search_path", None)
        if pin is not None:
            self._settings.setdefault("search_path", pin)
            self._config["shared_pool_search_path"] = None

    async def end_backends(self, pids: Collection[int]) -> dict[int, Activity]:
        """Ends server processes that serve connections of these pools; returns what those found were doing.

        In any loop. A server that cannot be reached has nothing to end.
        """
        with contextlib.suppress(*FAILURES):
            return await self._end(pids, self.application_name)
        return {}

    async def _end_by_another(self, pids: Collection[int], name: str) -> dict[int, Activity]:
        """By a connection of its own: a pool that must be cut off may have none to spare."""
        connection = await login.connect(
            self._endpoint,
            self._database,
            self._endpoint.login,
            application_name=name + " end",
            patience=backends.SECONDS_TO_END,
        )
        try:
            return await backends.end(connection, pids, application=name)
        finally:
            await connection.close()


def _unprepared(endpoint: Endpoint) -> dict[str, Any]:
    # A statement that asyncpg has prepared is known to one session only. A pooler may see to that
    # (max_prepared_statements in PgBouncer 1.21): who has one gives the size among the pool's options.
    return {"statement_cache_size": 0} if endpoint.pooling == "transaction" else {}


def _pinned(path: SearchPath) -> dict[str, Any]:
    # The field came with pgdbm 0.5; 0.4 would ignore it silently.
    if PGDBM_PATH is None or path.entries is None:
        return {}
    return {"shared_pool_search_path": path.for_pool(PGDBM_PATH)}


def _check(options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _OURS:
            raise ConfigError(f"pgdbm_pool_options: {name!r} is the plugin's: the pool is on the run's server")
        if name == "shared_pool_search_path":
            raise ConfigError("pgdbm_pool_options: give the search path in pgdbm_search_path instead")
        if name not in DatabaseConfig.model_fields:
            known = ", ".join(sorted(set(DatabaseConfig.model_fields) - _OURS))
            raise ConfigError(f"pgdbm_pool_options: pgdbm.DatabaseConfig has no field {name!r}; it has: {known}")
