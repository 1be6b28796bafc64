"""The command with which a person looks into a test's database while the test stands still."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.masks import masked

_FILE = "pgpass"


def command(endpoint: Endpoint, database: str, folder: Path, schemas: Sequence[str]) -> str:
    """A `psql` command line without a password in it, on the path of the test's schemas.

    On a server of our own the password is put into a file of mode 0600 in `folder`, which psql is told of:
    https://www.postgresql.org/docs/current/libpq-pgpass.html
    """
    path = f"PGOPTIONS={shlex.quote('-c search_path=' + ','.join([*schemas, 'public']))}"
    if endpoint.url is not None:
        return f"{path} psql {shlex.quote(masked(endpoint.admin_url_for(database)))}"
    file = _password_file(endpoint, folder)
    who = f"-h {endpoint.host} -p {endpoint.port} -U {shlex.quote(endpoint.login.user)}"
    return f"PGPASSFILE={shlex.quote(str(file))} {path} psql {who} {shlex.quote(database)}"


def _password_file(endpoint: Endpoint, folder: Path) -> Path:
    file = folder / _FILE
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        fields = ("*", "*", "*", endpoint.login.user, endpoint.login.password or "")
        opened.write(":".join(field.replace("\\", "\\\\").replace(":", "\\:") for field in fields) + "\n")
    return file
