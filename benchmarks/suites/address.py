"""How the sides without the plugin's manager reach the plugin's server: as the plugin does, over its Unix socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit


def address(server: Any) -> str:
    """The URI of the worker's database over the socket; over TCP where no socket is seen."""
    socket = _socket(server.port)
    if socket is None:
        return str(server.url)
    login = urlsplit(str(server.url)).netloc.rpartition("@")[0]
    return f"postgresql://{login}@/{server.database}?host={quote(str(socket.parent), safe='')}&port={server.port}"


def _socket(port: int) -> Path | None:
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return None
    paths = (Path(line.split()[-1]) for line in lines[1:])
    return next((path for path in paths if path.name == f".s.PGSQL.{port}"), None)
