"""Whom the server programs run as: they refuse to run as root, and `initdb` wants a user with a name.

https://www.postgresql.org/docs/current/app-initdb.html
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers import lend_name

_UNPRIVILEGED = ("postgres", "nobody")


class Account(NamedTuple):
    """A user of this machine, by number."""

    uid: int
    gid: int
    name: str

    def popen(self) -> dict[str, Any]:
        """The keywords of `subprocess.Popen` that run a program as this user, in no other group."""
        return {"user": self.uid, "group": self.gid, "extra_groups": ()}

    def reaches(self, path: Path) -> bool:
        """Whether the permissions let this user into the folder, or read and run the file.

        Access lists are not looked at.
        """
        real = Path(os.path.realpath(path))
        inner = os.R_OK | os.X_OK if real.is_file() else os.X_OK
        wanted = [(real, inner), *((parent, os.X_OK) for parent in real.parents)]
        return all(self._may(at.stat(), bits) for at, bits in wanted)

    def _may(self, status: os.stat_result, bits: int) -> bool:
        if status.st_uid == self.uid:
            shift = 6
        elif status.st_gid == self.gid:
            shift = 3
        else:
            shift = 0
        return (stat.S_IMODE(status.st_mode) >> shift) & bits == bits


def dropped_to() -> Account | None:
    """Whom to run the server as instead of root; None if the process is not root's.

    Raises ServerFailed if there is nobody else on this machine.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        account = _account(name)
        if account is not None and account.uid != 0:
            return account
    raise ServerFailed(
        "PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor"
        " a user 'nobody' to run it as",
        "add one of them (useradd --system postgres), or run pytest as another user",
    )


def named(command: list[str]) -> list[str]:
    """`command`, changed so that it finds a name for its user where that has none.

    A user without a name is usual in containers (`docker run --user 12345`). See `lend_name`, whose
    status REFUSED tells that it may not. Raises ServerFailed if there is no name to lend.
    """
    if not hasattr(os, "geteuid") or _has_name(os.geteuid()):
        return command
    account = next((a for a in map(_account, _UNPRIVILEGED) if a is not None), None)
    if account is None or not sys.platform.startswith("linux"):
        raise nameless("this machine has no user whose name could be lent")
    numbers = [str(account.uid), str(account.gid)]
    return [sys.executable, "-I", "-S", lend_name.__file__, *numbers, *command]


def nameless(why: str) -> ServerFailed:
    """The error for a user without a name, where none could be lent."""
    uid, gid = os.geteuid(), os.getegid()
    return ServerFailed(
        f"initdb needs a name for the user that it runs as, and {uid} has none; {why}",
        f"add the line 'tests:x:{uid}:{gid}::/tmp:/bin/sh' to /etc/passwd, run pytest as a user"
        " with a name, or take another server (--pgdbm-server=container, --pgdbm-url)",
    )


def _account(name: str) -> Account | None:
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid, name)


def _has_name(uid: int) -> bool:
    import pwd

    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
