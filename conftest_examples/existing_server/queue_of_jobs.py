"""A queue in Postgres: workers take what waits and never the same job twice."""

from __future__ import annotations

from pgdbm import AsyncDatabaseManager


async def submit(db: AsyncDatabaseManager, account: str, task: str) -> int:
    """The id of a new job for the account of this name."""
    sql = """
        INSERT INTO {{tables.jobs}} (account_id, task)
        SELECT id, $2 FROM {{tables.accounts.accounts}} WHERE name = $1
        RETURNING id
    """
    job = await db.fetch_value(sql, account, task)
    if job is None:
        raise LookupError(f"there is no account {account!r}")
    return job


async def take(db: AsyncDatabaseManager) -> int | None:
    """The id of the oldest job that waits, which is running now; None if none waits."""
    sql = """
        UPDATE {{tables.jobs}} SET state = 'running'
        WHERE id = (
            SELECT id FROM {{tables.jobs}} WHERE state = 'waiting' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING id
    """
    return await db.fetch_value(sql)


async def history(db: AsyncDatabaseManager, job: int) -> list[str]:
    """The states that a job has been in."""
    rows = await db.fetch_all("SELECT state FROM {{tables.history}} WHERE job_id = $1 ORDER BY since", job)
    return [row["state"] for row in rows]
