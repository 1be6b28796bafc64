"""Where the Docker daemon is, and how long it may take to answer."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

QUICK = 5.0
"""How many seconds the daemon may take for an answer."""

PATIENT = 60.0
"""How many seconds the daemon may take to make or remove a container on a busy machine."""


def docker_host() -> str:
    """Where the Docker daemon is, as a URL, looked up in the order in which testcontainers does.

    That is `tc.host` in `~/.testcontainers.properties`, `DOCKER_HOST`, the current context of the
    `docker` command, and the usual socket.
    """
    named = _host_in_properties() or os.environ.get("DOCKER_HOST")
    return named or _host_of_context() or usual_host()


def usual_host() -> str:
    """Where the daemon is unless something else is said."""
    windows = sys.platform == "win32"
    return "npipe:////./pipe/docker_engine" if windows else "unix:///var/run/docker.sock"


def _host_in_properties() -> str | None:
    try:
        text = (Path.home() / ".testcontainers.properties").read_text()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    found = re.search(r"^\s*tc\.host\s*=\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def _host_of_context() -> str | None:
    try:
        from docker.context import ContextAPI

        context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
        return context.Host or None if context.Name != "default" else None
    except Exception:
        return None  # no such context, or a file that cannot be read: the usual place is tried
