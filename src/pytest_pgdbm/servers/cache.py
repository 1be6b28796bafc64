"""Where the user's cache is, and under which name a cluster lies in it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from pytest_pgdbm.servers.installations import Installation
from pytest_pgdbm.servers.packs import FORMAT

VARIABLE = "PGDBM_CACHE_DIR"
"""Names the folder of the cache, where the platform's is not wanted."""

_RECIPE = 1
"""Changes with what the plugin has `initdb` make."""

_LOCALES = Path("/usr/lib/locale")


def cluster_file(installation: Installation, environ: Mapping[str, str]) -> Path | None:
    """The file for the cluster that this installation's `initdb` makes on this machine; None if there is no place.

    Its name stands for all that such a cluster depends on, so another one is never taken for it.
    """
    folder = cache_folder(environ)
    return None if folder is None else folder / f"{_key(installation)}.cluster"


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder of what is the caller's, which need not exist; None if it would lie in another user's folder.

    The latter happens to a root who has kept somebody's HOME, as `sudo` may do. A user without a home has none either.
    """
    name = f"user-{os.geteuid()}" if hasattr(os, "geteuid") else "user"
    try:
        if given := environ.get(VARIABLE):
            return Path(given).expanduser().absolute() / name
        folder = _users_folder()
    except RuntimeError:  # there is no home that a '~' could stand for
        return None
    return folder / name if folder.is_absolute() and _is_own(folder) else None


def _users_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("pytest-pgdbm", appauthor=False)


def _is_own(folder: Path) -> bool:
    """Whether the folder, or the nearest above it that exists, belongs to the caller."""
    if not hasattr(os, "geteuid"):
        return True
    for at in (folder, *folder.parents):
        try:
            return at.stat().st_uid == os.geteuid()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return False


def _key(installation: Installation) -> str:
    parts = [
        FORMAT,
        _RECIPE,
        str(installation.bindir),
        installation.version,
        platform.machine(),
        *(_state(file) for file in _programs(installation)),
        # A cluster lists the system's collations, with the version of the C library. That of ICU cannot change under
        # the programs, which are linked to one. https://www.postgresql.org/docs/current/collation.html
        platform.libc_ver(),
        sorted(entry.name for entry in _LOCALES.iterdir()) if _LOCALES.is_dir() else [],
        _state(_LOCALES / "locale-archive"),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _programs(installation: Installation) -> list[Path]:
    ending = ".exe" if os.name == "nt" else ""
    programs = [installation.bindir / f"{name}{ending}" for name in ("postgres", "initdb")]
    share = installation.sharedir
    return programs if share is None else [*programs, share / "postgres.bki"]


def _state(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size, status.st_ino]
