"""Takes a server's directory away, with every server process that still works in it.

Used at the ordinary end and after a kill alike, by the path alone: the directory's name is random and
was written down before it was made, so a process that works in it can only be that server's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

QUIT = getattr(signal, "SIGQUIT", signal.SIGTERM)
"""Asks a main process for an immediate shutdown: https://www.postgresql.org/docs/current/server-shutdown.html"""

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

# https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-DYNAMIC-SHARED-MEMORY-TYPE
_SHARED = re.compile(rb"/dev/shm/PostgreSQL\.\d+$", re.MULTILINE)

# How a segment begins, and its maker's process number next:
# https://github.com/postgres/postgres/blob/master/src/include/storage/pg_shmem.h
_SEGMENTS_MAGIC = 679834894

_GENTLE = 3.0
_BOUND = 8.0
_PATIENCE = 0.01


def take_away(at: str) -> None:
    """Ends the server whose directory this is, at once, and removes the directory.

    Nothing happens if neither is there. Returns after 8 seconds at the latest.
    """
    home = Path(at)
    if home.is_symlink():
        return
    _end(home, QUIT, _GENTLE)
    shared = _end(home, KILL, _BOUND - _GENTLE)
    for file in shared:
        file.unlink(missing_ok=True)
    _free_segment(home)
    _remove(home)


def processes(home: Path) -> set[int]:
    """The server processes that work in the directory or were started on it."""
    if not Path("/proc/self").exists():
        return _by_ps(home)
    inside = os.fsencode(os.path.realpath(home))
    numbers = (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {int(number) for number in numbers if _is_of(number, inside)}


def postmaster(home: Path) -> int | None:
    """The main process that the directory's `postmaster.pid` tells of; it may have ended."""
    lines = pid_file(data_directory(home))
    return int(lines[0]) if lines and lines[0].isdigit() else None


def data_directory(home: Path) -> Path:
    """Where the data lie in a server's directory."""
    return home / "data"


def pid_file(data: Path) -> list[str]:
    """The lines of `postmaster.pid` in the data directory; none if it is not there.

    The first is the main process, the seventh its shared memory, the eighth how far it is:
    https://github.com/postgres/postgres/blob/master/src/include/utils/pidfile.h
    """
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return []


def _end(home: Path, how: int, seconds: float) -> set[Path]:
    """Signals what is left until nothing is, for so many seconds at most.

    Returns the shared memory that they had, and that they may have left if they were killed.
    """
    until = time.monotonic() + seconds
    told: set[int] = set()
    shared: set[Path] = set()
    while left := _to_end(home, how):
        for pid in left - told:
            shared |= _shared_memory(pid)
            _signal(pid, how)
        told |= left
        if time.monotonic() > until:
            break
        time.sleep(_PATIENCE)
    return shared


def _to_end(home: Path, how: int) -> set[int]:
    left = processes(home)
    # The main process ends its children itself, and frees what they share.
    return left & {postmaster(home)} if how == QUIT else left


def _signal(pid: int, how: int) -> None:
    try:
        os.kill(pid, how)
    except (ProcessLookupError, PermissionError):
        return


def _is_of(pid: str, inside: bytes) -> bool:
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        if _started_on(words, inside):
            return True
        place = os.fsencode(Path("/proc", pid, "cwd").readlink()) if _is_server(words[0]) else b""
    except OSError:
        return False
    return place.startswith(inside + b"/")


def _started_on(words: list[bytes], inside: bytes) -> bool:
    data = os.fsencode(data_directory(Path(os.fsdecode(inside))))
    return any(word == b"-D" and words[at + 1 : at + 2] == [data] for at, word in enumerate(words))


def _is_server(called: bytes) -> bool:
    # A server process calls itself `postgres: checkpointer`.
    return called.startswith(b"postgres:") or called.rpartition(b"/")[2] in (b"postgres", b"initdb")


def _by_ps(home: Path) -> set[int]:
    """The main process, where there is no /proc (macOS): its command line names the directory."""
    main, ps = postmaster(home), shutil.which("ps")
    if main is None or ps is None:
        return set()
    told = subprocess.run([ps, "-o", "command=", "-p", str(main)], stdout=subprocess.PIPE)
    return {main} if os.fsencode(data_directory(home)) in told.stdout else set()


def _shared_memory(pid: int) -> set[Path]:
    """The process's dynamic shared memory in /dev/shm, where that of `initdb`'s servers is."""
    try:
        maps = Path("/proc", str(pid), "maps").read_bytes()
    except OSError:
        return set()
    return {Path(os.fsdecode(found)) for found in _SHARED.findall(maps)}


def _free_segment(home: Path) -> None:
    """Frees the System V segment that guards the data directory, if it is left of a killed process.

    The number may be another server's by now, since the machine was started anew: so it must say itself that it is
    that process's, and that must have ended.
    """
    lines = pid_file(data_directory(home))
    words = lines[6].split() if len(lines) > 6 else []
    if len(words) != 2 or not words[1].isdigit():
        return
    # A server without a main process, as initdb's, writes its number with a minus.
    maker = lines[0].removeprefix("-")
    if maker.isdigit() and not _lives(int(maker)):
        _free(int(words[1]), int(maker))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _free(segment: int, maker: int) -> None:
    import ctypes

    system, read_only, remove = ctypes.CDLL(None), 0o10000, 0  # SHM_RDONLY, IPC_RMID
    system.shmat.restype = ctypes.c_void_p
    at = system.shmat(segment, None, read_only)
    if at == ctypes.c_void_p(-1).value:
        return
    said = tuple((ctypes.c_int32 * 2).from_address(at))
    system.shmdt(ctypes.c_void_p(at))
    if said == (_SEGMENTS_MAGIC, maker):
        system.shmctl(segment, remove, None)


def _remove(home: Path) -> None:
    until = time.monotonic() + _GENTLE
    while home.exists():
        # What a process that is just ending still writes makes a removal fail half way.
        shutil.rmtree(home, ignore_errors=True)
        if time.monotonic() > until:
            return
        if home.exists():
            time.sleep(_PATIENCE)
