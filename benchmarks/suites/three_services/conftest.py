"""Three services that nothing ties, as the fixtures of an application's tests."""

from work import MIGRATIONS

from pytest_pgdbm import pgdbm_db

users, orders, payments = (pgdbm_db(name, migrations=MIGRATIONS.absolute()) for name in ("users", "orders", "payments"))
