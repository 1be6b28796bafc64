"""The script that runs a command under a lent name: `python lend_name.py UID GID COMMAND...`.

The command's user has no name on this machine. In a user namespace of its own the user's number is
UID, which has one. Ends with status 97 if that is refused:
https://man7.org/linux/man-pages/man7/user_namespaces.7.html
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REFUSED = 97
"""The exit status if there may be no user namespace."""

_CLONE_NEWUSER = 0x10000000  # `os.unshare` is there from Python 3.12 on


def _lend(uid: str, gid: str) -> None:
    import ctypes

    own_uid, own_gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare failed")
    maps = (("setgroups", "deny"), ("uid_map", f"{uid} {own_uid} 1"), ("gid_map", f"{gid} {own_gid} 1"))
    for name, text in maps:
        Path("/proc/self", name).write_text(text)


def _main(uid: str, gid: str, command: list[str]) -> None:
    try:
        _lend(uid, gid)
    except OSError as error:
        print(f"a user namespace was refused: {error.strerror}", file=sys.stderr)
        sys.exit(REFUSED)
    os.execv(command[0], command)  # noqa: S606 (a shell has no place here)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
