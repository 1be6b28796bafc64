from pytest_pgdbm import pgdbm_db

users_db = pgdbm_db("users")
