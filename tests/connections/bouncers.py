"""PgBouncer, really running in front of the tests' server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from scenes import eventually

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin")
IGNORES = (
    "search_path,jit,statement_timeout,lock_timeout,idle_in_transaction_session_timeout,idle_session_timeout,"
    "transaction_timeout"
)

Through = Callable[..., AbstractContextManager[str]]


@contextmanager
def bouncing(folder: Path, url: str, mode: str, databases: str = "*", **options: object) -> Iterator[str]:
    """A PgBouncer in front of the server at the URL; the URL through it.

    `databases` are the names that it passes on, `options` go into its configuration.
    """
    assert PROGRAM is not None
    parts = urlsplit(url)
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    users = folder / "users.txt"
    users.write_text(f'"{parts.username}" "{unquote(parts.password or "")}"\n')
    written: dict[str, object] = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": users,
        "pool_mode": mode,
        "ignore_startup_parameters": IGNORES,
        **({"user": "nobody"} if os.geteuid() == 0 else {}),
        **options,
    }
    config = folder / "pgbouncer.ini"
    lines = [f"[databases]\n{databases} = host={parts.hostname} port={parts.port}\n[pgbouncer]"]
    config.write_text(
        "\n".join([*lines, *(f"{name} = {value}" for name, value in written.items() if value is not None)])
    )
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log)
    try:
        eventually(lambda: _answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield url.replace(f"@{parts.hostname}:{parts.port}/", f"@127.0.0.1:{port}/")
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture
def through(database_url: str, tmp_path: Path) -> Through:
    """Starts a PgBouncer in front of the test's own database."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (on Debian: apt-get install pgbouncer)")
    numbers = iter(range(9))
    return lambda mode, **options: bouncing(tmp_path / f"bouncer{next(numbers)}", database_url, mode, **options)
