"""Sees from outside when the server in the plugin's next container answers a query for the first time."""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Any

LABEL = "pytest-pgdbm.run"
_PORT = "5432/tcp"


def engine() -> str | None:
    """Why no container can be started; None if one can."""
    try:
        import docker

        docker.from_env(timeout=5).ping()
    except Exception as error:
        return f"no container engine: {str(error).splitlines()[0]}"
    return None


class Watcher:
    """Within the `with`, waits for a new container of the plugin; `answered` is the clock at its first answer."""

    def __init__(self) -> None:
        import docker

        self._docker = docker.from_env()
        self._old = {each.id for each in self._containers()}
        self._over = threading.Event()
        self._answered: float | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def answered(self) -> float:
        """When the first `SELECT 1` succeeded, on the clock of `time.monotonic`."""
        if self._answered is None:
            raise RuntimeError("no container of the plugin answered a query")
        return self._answered

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._docker.close()

    def _containers(self) -> list[Any]:
        return list(self._docker.containers.list(filters={"label": LABEL}))

    def _watch(self) -> None:
        import asyncpg

        while not self._over.is_set():
            for each in self._containers():
                if each.id not in self._old and each.ports.get(_PORT):
                    asyncio.run(self._ask(asyncpg, each))
                    return
            time.sleep(0.01)

    async def _ask(self, asyncpg: Any, container: Any) -> None:
        settings = dict(word.partition("=")[::2] for word in container.attrs["Config"]["Env"])
        where = {"host": "127.0.0.1", "port": int(container.ports[_PORT][0]["HostPort"]), "database": "postgres"}
        who = {"user": settings["POSTGRES_USER"], "password": settings["POSTGRES_PASSWORD"]}
        while not self._over.is_set():
            try:
                connection = await asyncpg.connect(**where, **who, timeout=1)
                await connection.fetchval("SELECT 1")
                self._answered = time.monotonic()
                await connection.close()
                return
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncio.TimeoutError):
                await asyncio.sleep(0.01)
