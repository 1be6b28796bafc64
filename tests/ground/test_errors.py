"""The messages that errors build by themselves, as a whole."""

from __future__ import annotations

import pickle

from pytest_pgdbm.ground.errors import (
    Attempt,
    BuildError,
    ConfigError,
    LeaseEnded,
    MigrationsError,
    NoServer,
    PgdbmError,
    PgdbmLeakWarning,
    PgdbmWarning,
    SeedError,
    ServerFailed,
    ServerGone,
    UnknownService,
)


def test_an_unknown_service_is_told_with_the_nearest_name_and_the_way_to_declare_it() -> None:
    error = UnknownService("user", ["users", "orders"], ["/project/tests/migrations", "/project/migrations"])
    assert str(error) == (
        "unknown service 'user'; did you mean 'users'?\n"
        "  known services: orders, users\n"
        "  looked in: /project/tests/migrations\n"
        "  looked in: /project/migrations\n"
        "  to declare it: make the folder migrations/user/ with its .sql files, add the line"
        " 'user = path/to/its/migrations' to the setting pgdbm_services, or give migrations= to pgdbm_db()"
    )
    assert (error.name, error.known) == ("user", ("orders", "users"))


def test_an_unknown_service_is_told_where_none_is_known() -> None:
    assert str(UnknownService("x", [])).splitlines()[:2] == ["unknown service 'x'", "  known services: none"]


def test_no_server_tells_everything_that_was_tried_and_what_mends_it() -> None:
    error = NoServer(
        [Attempt("embedded", "no programs found\nin PATH"), Attempt("container", "no Docker")],
        "pip install 'pytest-pgdbm[embedded]'",
    )
    assert str(error) == (
        "pytest-pgdbm could not get a Postgres server\n"
        "  embedded: no programs found\n"
        "    in PATH\n"
        "  container: no Docker\n"
        "  to mend it: pip install 'pytest-pgdbm[embedded]'"
    )
    assert [attempt.kind for attempt in error.attempts] == ["embedded", "container"]


def test_a_failed_server_tells_why_and_what_mends_it() -> None:
    error = ServerFailed("the port is taken", "use another")
    assert str(error) == "the port is taken\n  to mend it: use another"
    assert (error.why, error.remedy) == ("the port is taken", "use another")


def test_every_error_is_a_pgdbm_error_and_every_warning_a_pgdbm_warning() -> None:
    errors = (ConfigError, UnknownService, NoServer, ServerFailed, ServerGone, BuildError, LeaseEnded)
    assert all(issubclass(error, PgdbmError) for error in errors)
    assert issubclass(ServerGone, NoServer)
    assert issubclass(MigrationsError, BuildError)
    assert issubclass(SeedError, BuildError)
    assert issubclass(PgdbmLeakWarning, PgdbmWarning)
    assert issubclass(PgdbmWarning, UserWarning)


def test_that_there_is_no_server_is_said_in_a_line_after_the_first_time() -> None:
    error = ServerGone("no Postgres server in this run")
    assert (str(error), error.attempts) == ("no Postgres server in this run", ())


def test_plain_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MigrationsError("what")))
    assert str(error) == "what"
