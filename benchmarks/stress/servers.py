"""Servers for the stress runs: embedded ones with settings of their own, which the runs see as a URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from pytest_pgdbm.ground.endpoint import Login
from pytest_pgdbm.ground.names import new_run
from pytest_pgdbm.servers.base import Job, new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer
from pytest_pgdbm.servers.installations import find_installations
from pytest_pgdbm.servers.scram import verifier

DATABASE, ROLE = "stress_test", "app"


# Who is logging in has no role yet, and may be refused.
COUNT = """
select count(*) from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
where a.backend_type = 'client backend' and not r.rolsuper
"""
"""How many connections others than superusers have."""


class Server(NamedTuple):
    """A server: the URL of an empty database for the ordinary role that owns it, and its superuser's URL."""

    url: str
    boss: str


class _Configured(EmbeddedServer):
    def __init__(self, job: Job, settings: dict[str, object]) -> None:
        super().__init__(job)
        self._more = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _postgres(self, *where: Any) -> list[str]:
        return [*super()._postgres(*where), *self._more]


@contextlib.contextmanager
def started(**settings: object) -> Iterator[Server]:
    """A server with these settings, stopped and removed at the end."""
    with tempfile.TemporaryDirectory() as parent:
        run, password = new_run(), secrets.token_hex(8)
        folder = Path(parent, f"pgdbm-{os.getuid()}-{run}")
        folder.mkdir(mode=0o700)
        new_record(folder)
        installation = next(find_installations())
        job = Job(
            run=run,
            kind="embedded",
            folder=str(folder),
            admin=Login("boss", password),
            verifier=verifier(password),
            installation=str(installation.bindir),
            version=installation.version,
        )
        server = _Configured(job, settings)
        try:
            at = server.start()
            boss = f"postgresql://boss:{password}@{at.host}:{at.port}/postgres"
            asyncio.run(_make_database(boss, password))
            yield Server(f"postgresql://{ROLE}:{password}@{at.host}:{at.port}/{DATABASE}", boss)
        finally:
            server.stop()


async def _make_database(boss: str, password: str) -> None:
    connection = await asyncpg.connect(boss)
    await connection.execute(f"create role {ROLE} login createdb password '{password}'")
    await connection.execute(f"create database {DATABASE} owner {ROLE}")
    await connection.close()
