import asyncio

import asyncpg
import pytest
from queue_of_jobs import history, submit, take

pytestmark = pytest.mark.asyncio


async def test_a_job_is_taken_once(jobs_db):
    job = await submit(jobs_db, "analytical engines ltd", "compute Bernoulli numbers")
    assert await take(jobs_db) == job
    assert await take(jobs_db) is None
    assert await history(jobs_db, job) == ["waiting", "running"]


async def test_workers_at_once_never_take_the_same(jobs_db):
    jobs = [await submit(jobs_db, "Analytical Engines Ltd", f"card {number}") for number in range(6)]
    taken = await asyncio.gather(*(take(jobs_db) for _ in range(6)))
    assert sorted(taken) == jobs


async def test_a_job_of_nobody(jobs_db):
    with pytest.raises(LookupError, match="there is no account 'Nobody'"):
        await submit(jobs_db, "Nobody", "nothing")


async def test_the_server_is_the_one_of_the_url(pgdbm_server, pgdbm_url, jobs_db):
    assert pgdbm_server.kind == "url"
    connection = await asyncpg.connect(pgdbm_url)
    try:
        database = await connection.fetchval("SELECT current_database()")
    finally:
        await connection.close()
    assert database == pgdbm_server.database == await jobs_db.fetch_value("SELECT current_database()")
