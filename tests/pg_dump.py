"""What `pg_dump` says of a set of schemas, in a form in which two of them can be compared."""

from __future__ import annotations

import asyncio
import difflib
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache

from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.names import quote_ident
from pytest_pgdbm.servers.installations import find_installations

_KEPT_LINES = 60


async def dump(endpoint: Endpoint, database: str, schemas: Mapping[str, str]) -> str:
    """What `pg_dump` says of the schemas to the superuser, their names replaced by the services."""
    program, options = _program(int(endpoint.version.partition(".")[0]))
    chosen = [f"--schema={quote_ident(schema)}" for schema in schemas.values()]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        *chosen,
        env={**os.environ, **_connection(endpoint, database)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    text = said.decode()
    for service, schema in schemas.items():
        text = text.replace(schema, f"<{service}>")
    return text


def _connection(endpoint: Endpoint, database: str) -> dict[str, str]:
    return {
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGUSER": endpoint.admin.user,
        "PGPASSWORD": endpoint.admin.password or "",
        "PGDATABASE": database,
    }


@cache
def _program(major: int) -> tuple[str, tuple[str, ...]]:
    """The program of this version, or else of the oldest later one, and its options."""
    there = sorted((one.major, one.bindir / "pg_dump") for one in find_installations())
    program = next((str(path) for its, path in there if its >= major and path.exists()), shutil.which("pg_dump"))
    assert program, f"there is no pg_dump of version {major} or later"
    known = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    options = ("--no-statistics", "--restrict-key=same")
    return program, tuple(option for option in options if option.partition("=")[0] in known)


def dumps_differ(before: str, now: str) -> list[str]:
    """The lines of two dumps that are not the same."""
    told = difflib.unified_diff(before.splitlines(), now.splitlines(), "before", "now", lineterm="", n=1)
    return [line[:300] for line in told][:_KEPT_LINES]
