"""Where a server's directory is made: in memory if there is room, and where its user can reach it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import PREFIX
from pytest_pgdbm.servers.accounts import Account
from pytest_pgdbm.servers.base import Place, record, scratch

ROOMY = 1 << 30
"""The bytes that must be free for the data to lie in memory.

A new cluster takes 40 MB, its write-ahead log up to 256 MB, each worker's database 10 MB: with 1 GiB
there is more than half left for what the tests write.
"""

SOCKET_PATH = 100
"""The bytes that a socket's path may have: 103 on macOS, 107 on Linux, less a margin."""

_MEMORY = "/dev/shm"  # noqa: S108
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_SOCKET = ".s.PGSQL.65535"


def make_home(run: str, folder: Path, account: Account | None) -> Path:
    """A new directory for a server's data, mode 0700, that belongs to `account` or to the caller.

    It is noted in the run's `folder` before it is made. Raises ServerFailed if it can be nowhere.
    """
    refused = []
    for parent in _parents(folder, account):
        # The run's folder will be opened for the account; the one that it is in will not.
        entered = folder.parent if parent == folder else parent
        if account is not None and not account.reaches(entered):
            refused.append(f"{entered}: the user {account.name} cannot enter it")
            continue
        try:
            return _make(run, folder, parent, account)
        except OSError as error:
            refused.append(f"{parent}: {error.strerror}")
    raise ServerFailed(
        "\n  ".join(["found no place for the server's data", *refused]),
        "set TMPDIR to a folder that can be written and that all users can enter",
    )


def make_socket_folder(run: str, folder: Path, home: Path, account: Account | None) -> Path | None:
    """A new folder for the server's socket, mode 0700, with a path that is short enough.

    None if there is no such place; the server is then reached over TCP only, as always on Windows,
    where asyncio has no Unix sockets.
    """
    if os.name == "nt":
        return None
    for parent in (home, *map(Path, _SHARED)):
        at = parent / ("s" if parent == home else _name(run))
        if len(os.fsencode(at / _SOCKET)) > SOCKET_PATH:
            continue
        try:
            return _made(at, folder, account)
        except OSError:
            continue
    return None


def make_programs_folder(run: str, folder: Path, home: Path, account: Account) -> Path:
    """A new folder that programs can be run from. Raises ServerFailed if there is none."""
    for parent in (home, folder, *map(Path, _SHARED)):
        if _runs_programs(parent) and (parent == home or account.reaches(parent)):
            with contextlib.suppress(OSError):
                return _made(parent / _name(run), folder, account)
    raise ServerFailed(
        "found no folder for a copy of the server programs: all that the user"
        f" {account.name} can enter are read-only or mounted noexec",
        f"let the user {account.name} enter the folder of the programs (chmod o+x), or set TMPDIR",
    )


def _parents(folder: Path, account: Account | None) -> Iterator[Path]:
    in_memory = [at for at in (folder, Path(_MEMORY)) if _in_memory(at) and _roomy(at)]
    yield from in_memory
    rest = (folder, *map(Path, _SHARED)) if account is not None else (folder,)
    yield from (at for at in rest if at not in in_memory)


def _make(run: str, folder: Path, parent: Path, account: Account | None) -> Path:
    if parent != folder:
        return _made(parent / _name(run), folder, account)
    if account is not None:
        # All else in the folder is closed to others by its own mode.
        folder.chmod(0o711)
    return _made(scratch(folder), folder, account)


def _made(at: Path, folder: Path, account: Account | None) -> Path:
    record(folder, Place("embedded", str(at)))
    # Fails if something is there already, a link included.
    at.mkdir(mode=0o700)
    if account is not None:
        os.chown(at, account.uid, account.gid, follow_symlinks=False)
    return at


def _name(run: str) -> str:
    return f"{PREFIX}-{run}-{os.urandom(4).hex()}"


def _runs_programs(folder: Path) -> bool:
    return folder.is_dir() and not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def _roomy(folder: Path) -> bool:
    status = os.statvfs(folder)
    return min(status.f_bavail * status.f_frsize, _free_memory()) >= ROOMY


def _free_memory() -> int:
    """The bytes that can be had without swapping: tmpfs promises half of all memory, used or not."""
    # https://man7.org/linux/man-pages/man5/proc_meminfo.5.html
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return 0


def _in_memory(folder: Path) -> bool:
    """Whether the folder's file system is one that lives in memory; never so without /proc."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    if not folder.is_dir():
        return False
    real = os.path.realpath(folder)
    kinds = {point: kind for point, kind in map(_mount, mounts) if _holds(point, real)}
    return bool(kinds) and kinds[max(kinds, key=len)] in ("tmpfs", "ramfs")


def _mount(line: str) -> tuple[str, str]:
    # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    before, _, after = line.partition(" - ")
    # Blanks and backslashes are written as octal numbers.
    point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
    return point, after.split()[0]


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
