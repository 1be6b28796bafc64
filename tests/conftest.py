"""A server for the tests, by the plugin itself, and small projects that are run on it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import asyncpg
import pytest
from databases import drop_database, execute

from pytest_pgdbm import PgdbmServer

pytest_plugins = [
    "pytester",
    "workshop",
    "connections.loops",
    "scenes",
    "connections.bouncers",
    "deaths.scene",
    "deaths.clusters",
]

_numbers = itertools.count()


def pytest_configure() -> None:
    """Runs that the tests start can be interrupted, even where a shell in the background has these ignore that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_UNUSED = ("cacheprovider", "hypothesispytest", "rerunfailures", "pytest_cov")
QUICK = tuple(word for name in _UNUSED for word in ("-p", f"no:{name}"))
"""Arguments of runs in processes of their own, of which each would load Hypothesis and more."""

# anyio's plugin loads trio. Both take as long as all the rest of a small run.
INI = f"""
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = {" ".join(QUICK)} -p no:anyio
"""

USERS = """
create table {{tables.users}} (id serial primary key, email text not null unique);
"""

ORDERS = """
create table {{tables.orders}} (
    id serial primary key,
    user_id int not null references {{tables.users.users}} (id)
);
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs are runs of their own: nothing of what chose the outer server reaches them."""
    monkeypatch.delenv("CI", raising=False)  # pytest's output differs there
    for name in [name for name in os.environ if name.startswith(("PGDBM_", "PYTEST_XDIST"))]:
        if name not in ("PGDBM_IMAGE", "PGDBM_SERVER_BIN", "PGDBM_CACHE_DIR"):
            monkeypatch.delenv(name)


@pytest.fixture
def database_url(pgdbm_server: PgdbmServer) -> Iterator[str]:
    """The URL of an empty database of this test's own, owned by an ordinary role."""
    name = f"inner_test_{os.getpid()}_{next(_numbers)}"
    execute(pgdbm_server.url, f'create database "{name}"')
    yield pgdbm_server.url.rpartition("/")[0] + "/" + name
    drop_database(pgdbm_server.url, name)


@pytest.fixture
def query(database_url: str) -> Callable[..., list[asyncpg.Record]]:
    """Runs a query in the test's own database."""

    def run(sql: str, *args: object) -> list[asyncpg.Record]:
        async def go() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(database_url)
            try:
                return await connection.fetch(sql, *args)
            finally:
                await connection.close()

        return asyncio.run(go())

    return run


class Project:
    """A small project in a folder of its own: two services, tied, and whatever else a test puts there."""

    def __init__(self, pytester: pytest.Pytester, url: str | None) -> None:
        self.pytester = pytester
        self.url = url
        self.write("pytest.ini", INI)
        self.write("migrations/users/001_users.sql", USERS)
        self.write("migrations/orders/001_orders.sql", ORDERS)
        self.write("conftest.py", "from pytest_pgdbm import pgdbm_db\nusers_db = pgdbm_db('users')\n")

    @property
    def path(self) -> Path:
        """The project's folder."""
        return self.pytester.path

    def write(self, name: str, text: str) -> Path:
        """Writes a file of the project."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    def run(self, *args: str, test: str | None = None) -> pytest.RunResult:
        """Runs its tests in this process, as a run of its own; `test` is the text of test_it.py."""
        if test is not None:
            self.write("test_it.py", test)
        return self.pytester.runpytest_inprocess(*self._url(), *args)

    def run_apart(self, *args: str, test: str | None = None) -> pytest.RunResult:
        """The same in a process of its own, for what a process's state or end would change."""
        if test is not None:
            self.write("test_it.py", test)
        return self.pytester.runpytest_subprocess(*self._url(), *args, timeout=120)

    def _url(self) -> list[str]:
        return [f"--pgdbm-url={self.url}"] if self.url else []


@pytest.fixture
def project(pytester: pytest.Pytester, database_url: str) -> Project:
    """A project whose tests run on an empty database of their own, given by URL."""
    return Project(pytester, database_url)


@pytest.fixture
def own_server_project(pytester: pytest.Pytester) -> Project:
    """A project that starts a server of its own."""
    return Project(pytester, None)
