from pytest_pgdbm import pgdbm_db

accounts_db = pgdbm_db("accounts", seed="seeds/accounts.sql")
jobs_db = pgdbm_db("jobs")
