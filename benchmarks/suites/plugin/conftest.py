"""With the plugin."""

from work import MIGRATIONS

from pytest_pgdbm import pgdbm_db

db = pgdbm_db("work", migrations=MIGRATIONS.absolute())
