"""Three services that nothing ties, as the fixtures of an application's tests."""

from work import MIGRATIONS

from pytest_pgdbm import pgdbm_db

users, orders, payments = (pgdbm_db(name, migrations=MIGRATIONS.absolute()) for name in ("users", "orders", "payments"))


def pytest_collection_modifyitems(items):
    """Tests of one, two and three services take turns, so that any stretch of the run is like any other."""
    items.sort(key=lambda item: item.callspec.params["number"])
