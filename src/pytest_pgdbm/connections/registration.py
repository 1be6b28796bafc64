"""Shows others on the server that a process and its run live, for as long as one of its sessions does.

What belongs to a run is swept by others once nobody holds its lock. The locks end with the session: no clock is needed
to know who is dead. A migration can release all locks of the session that it runs in; until they are taken again, the
session's name shows the same.
"""

from __future__ import annotations

import asyncpg

from pytest_pgdbm.ground import locks, names

SECONDS_TO_REGISTER = 30.0
"""How long to wait for somebody who sweeps what this process held before its session was lost."""

# What others hold is not looked at. One lock may be held several times by a session, but is shown once.
_RELEASE_OTHERS = """
do $release$
declare
    held record;
begin
    loop
        select classid, objid, objsubid, mode into held from pg_catalog.pg_locks
        where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid()
            and not (objsubid = 1 and (classid::bigint << 32 | objid::bigint) in ({run}, {process}))
            and not (objsubid = 2 and classid::bigint = {tickets})
        limit 1;
        exit when not found;
        perform case
            when held.objsubid = 1 and held.mode = 'ExclusiveLock'
                then pg_catalog.pg_advisory_unlock(held.classid::bigint << 32 | held.objid::bigint)
            when held.objsubid = 1
                then pg_catalog.pg_advisory_unlock_shared(held.classid::bigint << 32 | held.objid::bigint)
            when held.mode = 'ExclusiveLock'
                then pg_catalog.pg_advisory_unlock(held.classid::bigint::bit(32)::int, held.objid::bigint::bit(32)::int)
            else pg_catalog.pg_advisory_unlock_shared(
                held.classid::bigint::bit(32)::int, held.objid::bigint::bit(32)::int)
        end;
    end loop;
end
$release$
"""

_HELD = """
select count(*) = 2 from pg_catalog.pg_locks
where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid() and objsubid = 1 and granted
    and (classid::bigint << 32 | objid::bigint) in ({run}, {process})
"""


# Who may not drop what a role has made does not see its sessions' names either, and needs not.
_SESSIONS = """
select application_name as name from pg_catalog.pg_stat_activity
where datname = pg_catalog.current_database() and application_name like '{prefix} % {part}'
"""

PART = "admin"
"""What a session that registers calls its part of the work."""


async def find_processes(connection: asyncpg.Connection) -> set[tuple[str, str]]:
    """The processes, by run and name, whose registered session is to be seen in this database, locks or not."""
    rows = await connection.fetch(_SESSIONS.format(prefix=names.PREFIX, part=PART))
    words = [row["name"].split(" ") for row in rows]
    return {(run, process) for _, run, process, _ in (each for each in words if len(each) == 4)}


class Registration:
    """The locks of one process: its run's, shared with the run's other processes, and its own."""

    def __init__(self, run: str, worker: str) -> None:
        self._locks = {
            "run": locks.of_run(run),
            "process": locks.of_process(run, names.worker_name(worker)),
            "tickets": locks.TICKETS,
        }

    async def enter(self, connection: asyncpg.Connection) -> None:
        """Takes the locks in this session; waits for a sweeper, for thirty seconds.

        Raises asyncpg.LockNotAvailableError, with what mends it.
        """
        take = "select pg_catalog.pg_advisory_lock_shared({run}), pg_catalog.pg_advisory_lock({process})"
        limited = f"set lock_timeout = {SECONDS_TO_REGISTER * 1000:.0f}; {take.format(**self._locks)}"
        try:
            await connection.execute(f"{limited}; set lock_timeout = 0")
        except asyncpg.LockNotAvailableError as error:
            raise asyncpg.LockNotAvailableError(
                f"for {SECONDS_TO_REGISTER:g} seconds another session has held the locks by which this process shows"
                " that it lives: one that sweeps what this process lost, or its own that the network took away\n"
                "  to mend it: see who holds them: SELECT a.* FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE"
                " l.locktype = 'advisory'"
            ) from error

    async def clean(self, connection: asyncpg.Connection) -> bool:
        """Releases all other advisory locks of the session; these are taken anew if somebody has released them.

        Returns whether they were.
        """
        await connection.execute(_RELEASE_OTHERS.format(**self._locks))
        if await connection.fetchval(_HELD.format(**self._locks)):
            return False
        await connection.execute("select pg_catalog.pg_advisory_unlock_all()")
        await self.enter(connection)
        return True
