"""A database for each test, with three services in it."""

import pytest
from work import MIGRATIONS

from pytest_pgdbm import Service, pgdbm_database

database = pgdbm_database("users", "orders", "payments")


@pytest.fixture(scope="session")
def pgdbm_services(pgdbm_services):
    service = Service(MIGRATIONS.absolute())
    return {**pgdbm_services, **dict.fromkeys(("users", "orders", "payments"), service)}
