"""How a server that lives for one test run is set: nothing that it writes has to survive a crash.

Every name is valid from PostgreSQL 14 to 18 unless it stands behind a version:
https://www.postgresql.org/docs/current/runtime-config.html
"""

from __future__ import annotations

MAX_CONNECTIONS = 200

_ALL: dict[str, str] = {
    # Nothing needs to survive a crash: https://www.postgresql.org/docs/current/non-durability.html
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "wal_init_zero": "off",
    "checkpoint_timeout": "1h",
    # The data lies on tmpfs, so old write-ahead log is memory.
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "max_connections": str(MAX_CONNECTIONS),
    # Dropping many schemas at once takes more locks than the default of 64 for each connection.
    "max_locks_per_transaction": "256",
    # Compiling costs more than it saves on the small data of tests.
    "jit": "off",
    # The same on every machine.
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "password_encryption": "scram-sha-256",
    # Segments in the data directory go with it. Those in /dev/shm stay behind when the server is
    # killed, and do not fit there in a container, where it has 64 MB.
    "dynamic_shared_memory_type": "mmap",
    # The log is for what ends the server: the client is told of its own errors, and a statement may
    # hold a password.
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}

_SINCE: dict[int, dict[str, str]] = {
    # The password is random and lives as long as the run; 4096 rounds would cost each connection a
    # millisecond.
    16: {"scram_iterations": "1"},
    # The default starts three more processes; the data is in memory.
    18: {"io_method": "sync"},
}


def settings(major: int | None) -> dict[str, str]:
    """What a server of this major version is started with, by name.

    Without a version (a container image whose tag does not tell) only what every version knows.
    """
    later = [more for since, more in _SINCE.items() if major is not None and major >= since]
    return {name: value for part in (_ALL, *later) for name, value in part.items()}


def arguments(chosen: dict[str, str]) -> list[str]:
    """`chosen` as arguments of `postgres`: `-c name=value` each."""
    return [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")]
