"""The ways to get a Postgres server, one module for each, and the choice between them."""
