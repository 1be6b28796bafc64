"""The environment of server programs: made from scratch, so that nothing of the user's reaches them."""

from __future__ import annotations

import os

# What a program may need to be loaded at all. All else, above all `PG*`, `TZ` and locales, would
# change what the server does: https://www.postgresql.org/docs/current/libpq-envars.html
_LOADING = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")
_PROGRAMS = "/usr/local/bin:/usr/bin:/bin"


def clean_environment(libraries: str | None = None) -> dict[str, str]:
    """The environment for `postgres`, `initdb` and `pg_config`, whatever the user's one is.

    `libraries` are folders, as in a path, to look for shared libraries in first.
    """
    kept = {name: os.environ[name] for name in _LOADING if name in os.environ}
    if libraries is not None:
        first = (libraries, kept.get("LD_LIBRARY_PATH"))
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in first if part)
    path = os.environ.get("PATH", "") if os.name == "nt" else _PROGRAMS
    return {**kept, "PATH": path, "LC_ALL": "C", "TZ": "UTC"}
