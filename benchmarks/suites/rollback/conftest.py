"""BEGIN and ROLLBACK on one connection: a bound, not an equal, since nothing is ever committed."""

import asyncio
import re

import asyncpg
import pytest
import pytest_asyncio
from address import address
from work import LOOP, MIGRATIONS

SCHEMA = "work"


def rendered(query):
    return re.sub(r"{{tables\.(\w+)}}", rf"{SCHEMA}.\1", query).replace("{{schema}}", SCHEMA)


class OneConnection:
    """A connection with the methods of a manager that the tests use."""

    def __init__(self, connection):
        self._connection = connection

    async def execute(self, query):
        return await self._connection.execute(rendered(query))

    async def fetch_all(self, query):
        return await self._connection.fetch(rendered(query))

    async def fetch_value(self, query):
        return await self._connection.fetchval(rendered(query))


async def migrate(url):
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    for file in sorted(MIGRATIONS.glob("*.sql")):
        await connection.execute(rendered(file.read_text()))
    await connection.close()


@pytest.fixture(scope="session")
def migrated(pgdbm_server):
    url = address(pgdbm_server)
    asyncio.run(migrate(url))
    return url


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def connection(migrated):
    connection = await asyncpg.connect(migrated)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope=LOOP)
async def db(connection):
    transaction = connection.transaction()
    await transaction.start()
    yield OneConnection(connection)
    await transaction.rollback()
