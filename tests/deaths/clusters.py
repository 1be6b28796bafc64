"""Servers at a URL that tests can crash, bring back, freeze and fill."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from conftest import Project
from databases import connected, execute
from deaths.scene import Scene, eventually, scene_of
from keeper.runs import a_job, a_run

from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer


class Cluster(EmbeddedServer):
    """A server with settings of its own: `boss` is its superuser's URL, `url` that of an ordinary role's database."""

    def __init__(self, parent: Path, settings: dict[str, object], cached: Path) -> None:
        run = a_run(parent)
        run.folder.mkdir(mode=0o700)
        new_record(run.folder)
        job = a_job(run, cluster=str(cached))
        super().__init__(job)
        self._password = job.admin.password
        self.place = ""
        """Host and port."""
        self._command: tuple[Any, ...] = ()
        self._settings = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def begin(self) -> None:
        """Starts it, with an empty database."""
        at = self.start()
        self.place = f"{at.host}:{at.port}"
        self.run_as_boss(f"create role app login createdb password '{self._password}'")
        self.run_as_boss("create database app_test owner app")

    @property
    def boss(self) -> str:
        """The superuser's URL of the database."""
        return f"postgresql://boss:{self._password}@{self.place}/app_test"

    @property
    def url(self) -> str:
        """The URL that runs are given."""
        return f"postgresql://app:{self._password}@{self.place}/app_test"

    def take_passwords(self, other: Cluster) -> None:
        """Has its roles log in with the passwords of another server's."""
        for role in ("app", "boss"):
            self.run_as_boss(f"alter role {role} password '{other._password}'")
        self._password = other._password

    def run_as_boss(self, statement: str) -> None:
        """Executes a statement in another database."""
        execute(self.boss.rpartition("/")[0] + "/postgres", statement)

    def ask(self, query: str) -> list[asyncpg.Record]:
        """What the query gives the superuser in the runs' database."""
        return asyncio.run(_asked(self.boss, query))

    def holding(self, statement: str, act: Callable[[], object]) -> None:
        """Acts while a transaction of the superuser holds what the statement has locked."""

        async def go() -> None:
            async with connected(self.boss) as connection:
                await connection.execute(f"begin; {statement}")
                await asyncio.to_thread(act)
                await connection.execute("rollback")

        asyncio.run(go())

    @property
    def data(self) -> Path:
        """Where its data lies."""
        return Path(self._command[0].data)

    def crash(self) -> None:
        """Kills the server, all of its processes at once."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._child is not None
        self._child.wait()
        psutil.wait_procs(processes, timeout=30)

    def come_back(self) -> None:
        """Starts the server again, where it was and with its data."""
        Path(self._command[0].data, "postmaster.pid").unlink(missing_ok=True)
        eventually(self._is_back)  # another socket may have its port for a moment

    def _is_back(self) -> bool:
        return self._comes(self._spawn(self._postgres(*self._command), self._command[0], self._log), self._command[0])

    def freeze(self) -> None:
        """Has nobody answered any more: what connects waits."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Has the server go on."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def processes(self) -> list[psutil.Process]:
        """The server's processes, the first of them first."""
        with contextlib.suppress(psutil.NoSuchProcess, AttributeError):
            first = psutil.Process(self._child.pid)
            return [first, *first.children()]
        return []

    def _postgres(self, *command: Any) -> list[str]:
        self._command = command
        return [*super()._postgres(*command), *self._settings]


async def _asked(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


@contextlib.contextmanager
def a_cluster(cached: Path, **settings: object) -> Iterator[Cluster]:
    """A server with these settings."""
    with tempfile.TemporaryDirectory(prefix="c") as parent:
        Path(parent).chmod(0o755)
        cluster = Cluster(Path(parent), settings, cached)
        try:
            cluster.begin()
            yield cluster
        finally:
            cluster.thaw()
            cluster.stop()


@pytest.fixture(scope="session")
def cached_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a cluster that all servers of these tests are made from; the first of them makes it."""
    return tmp_path_factory.mktemp("cached") / "cluster"


@pytest.fixture
def cluster(cached_cluster: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server that nobody else uses; the test's parameter says how it is set."""
    with a_cluster(cached_cluster, **getattr(request, "param", {})) as cluster:
        yield cluster
        cluster.thaw()


@pytest.fixture
def at_cluster(pytester: pytest.Pytester, cluster: Cluster) -> Iterator[Scene]:
    """A scene at the URL of that server."""
    yield from scene_of(Project(pytester, cluster.url))
