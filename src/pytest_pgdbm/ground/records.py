"""Who takes part: the processes of this machine, and the run that some of them are.

Named tuples, since every run of pytest makes these classes, and a dataclass takes seven times as long to make.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process of this machine, told from a later one with the same number by when it started.

    `started` is the kernel's clock ticks since boot, or None where that cannot be read.
    """

    pid: int
    started: int | None

    @classmethod
    def this(cls) -> Process:
        """The running process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid, start_time(pid))

    def alive(self) -> bool:
        """Whether it runs still; a zombie does not."""
        if self.started is not None:
            return start_time(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None for a zombie, for no such process or without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # a program's name need not be UTF-8
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Run(NamedTuple):
    """One pytest run, as each of its processes sees it.

    `folder` is where the processes of the run on this host meet; it exists once somebody needed a server.
    `worker` is xdist's worker id, or `main`. `controller` is xdist's controller if it runs on this host.
    """

    id: str
    folder: Path
    worker: str = "main"
    workers: int = 1
    controller: Process | None = None
