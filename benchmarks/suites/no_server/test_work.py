"""The same body with pgdbm imported and no database."""

import pgdbm
from work import ROWS, each_test, work


class Nothing:
    """Answers as the database would."""

    async def execute(self, query):
        return "INSERT 0 3"

    async def fetch_all(self, query):
        return [1, 2, 3]

    async def fetch_value(self, query):
        return ROWS + 3


@each_test
async def test_work(number):
    assert pgdbm.AsyncDatabaseManager
    await work(Nothing())
