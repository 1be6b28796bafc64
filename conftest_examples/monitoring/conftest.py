import pytest

from pytest_pgdbm import pgdbm_db

sensors_db = pgdbm_db("sensors", seed={"sensors": [{"name": "boiler"}]})
readings_db = pgdbm_db("readings")


@pytest.fixture(scope="session")
def pgdbm_pool_options():
    """As the application has its pool, but small enough to be exhausted in a test."""
    return {"min_connections": 2, "max_connections": 6}
