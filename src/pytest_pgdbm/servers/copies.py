"""Server programs that their user can reach: copied, where they lie under a folder of root's alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers.accounts import Account
from pytest_pgdbm.servers.homes import make_programs_folder

_NEEDED = ("postgres", "initdb")
_PARTS = ("lib", "lib64", "share")
_SPARE = ("pkgconfig", "pgxs", "bitcode", "locale", "doc", "man", "*.a")


class Programs(NamedTuple):
    """The folder of the server programs, and where to look first for their libraries."""

    bindir: Path
    libraries: str | None = None


def reachable_programs(bindir: Path, account: Account | None, *, run: str, folder: Path, home: Path) -> Programs:
    """The programs of `bindir`, or a copy of them if `account` cannot reach those.

    A server finds its other files by its own place, so bin, lib and share move together. Raises
    ServerFailed if they lie in another order.
    """
    missing = [name for name in _NEEDED if shutil.which(name, path=bindir) is None]
    if missing:
        raise ServerFailed(f"{bindir} has no {' and no '.join(missing)}", "install PostgreSQL anew")
    if account is None or all(account.reaches(bindir / name) for name in _NEEDED):
        return Programs(bindir)
    prefix = bindir.parent
    if not any((prefix / "share").glob("**/postgres.bki")):
        raise ServerFailed(
            f"the user {account.name}, whom the server must run as, cannot enter {bindir}",
            "let the user enter it (chmod o+x on the folder and those above), or run pytest as another user than root",
        )
    target = make_programs_folder(run, folder, home, account)
    return _copied(bindir, prefix, target)


def _copied(bindir: Path, prefix: Path, target: Path) -> Programs:
    (target / "bin").mkdir()
    for name in _NEEDED:
        _copy_file(str(bindir / name), str(target / "bin" / name))
    for part in _PARTS:
        if (prefix / part).is_dir():
            _copy_tree(prefix / part, target / part)
    bundled = _bundled(bindir)
    if bundled is not None:
        _copy_tree(bundled, target / "libs")
    for folder, names, _ in os.walk(target):
        for name in names:
            Path(folder, name).chmod(0o755)
    return Programs(target / "bin", os.pathsep.join(map(str, (target / "lib", target / "libs"))))


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_SPARE), copy_function=_copy_file)


def _copy_file(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    return target


def _bundled(bindir: Path) -> Path | None:
    """The folder of shared libraries that a wheel brings beside its package."""
    beside = (above.with_name(f"{above.name}.libs") for above in bindir.parents if above.name)
    return next((folder for folder in beside if folder.is_dir()), None)
