"""The advisory locks by which processes tell each other on a server who lives and who sweeps.

They belong to the database in which they are taken. Each is a 64-bit number whose first three bytes no other program is
likely to use: https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

from __future__ import annotations

import hashlib

_RUN, _PROCESS = int.from_bytes(b"pgr", "big") << 40, int.from_bytes(b"pgp", "big") << 40

TICKETS = int.from_bytes(b"pgt\0", "big")
"""The first of two 32-bit numbers: of the tickets by which workers take turns, and with 0 of who waits for one."""

SWEEPING = int.from_bytes(b"pgs", "big") << 40
"""Held by the one who sweeps a database."""


def of_run(run: str) -> int:
    """Held shared by every process of the run that may have something in the database."""
    return _RUN | int(run, 16)


def of_process(run: str, worker: str) -> int:
    """Held by this process of the run alone; `worker` as it stands in names."""
    return _PROCESS | int.from_bytes(hashlib.blake2b(f"{run}/{worker}".encode(), digest_size=5).digest(), "big")
