"""Runs that get no server: one story, told once, with what mends it."""

from __future__ import annotations

import pytest
from conftest import Project

TWO_TESTS = """
async def test_one(users_db): pass
async def test_two(users_db): pass
def test_plain(): pass
"""


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine can be reached."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


def test_all_that_was_tried_is_told_with_what_mends_it(
    own_server_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGDBM_IMAGE", raising=False)
    result = own_server_project.run("--pgdbm-server-version=99", test=TWO_TESTS)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "pgdbm: container of postgres, since *",
            "pytest-pgdbm could not get a Postgres server",
            "  embedded: *",
            "  container: *nowhere/docker.sock*",
            "  to mend it: *",
        ]
    )


def test_the_first_test_tells_the_story_and_the_others_refer_to_it(own_server_project: Project) -> None:
    result = own_server_project.run("--pgdbm-server-bin=/nowhere", test=TWO_TESTS)
    result.assert_outcomes(passed=1, errors=2)
    output = result.stdout.str()
    assert output.count("pytest-pgdbm could not get a Postgres server") == 2  # the first test, and the summary
    assert output.count("no Postgres server in this run; the first test that asked for it") == 1
    result.stdout.fnmatch_lines(
        ["*= pgdbm =*", "pytest-pgdbm could not get a Postgres server", "  embedded: */nowhere*"]
    )


def test_under_xdist_it_is_tried_once_for_all_workers(own_server_project: Project) -> None:
    result = own_server_project.run_apart("-n", "2", "--dist=each", "--pgdbm-server-bin=/nowhere", test=TWO_TESTS)
    result.assert_outcomes(passed=2, errors=4)
    output = result.stdout.str()
    assert output.count("pytest-pgdbm could not get a Postgres server") == 2
    assert output.count("no Postgres server in this run; the first test that asked for it") == 3


def test_a_url_that_does_not_answer_is_not_replaced_by_another_server(own_server_project: Project) -> None:
    own_server_project.url = "postgresql://me:hunter2@127.0.0.1:1/db"
    result = own_server_project.run(test=TWO_TESTS)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["  url: 127.0.0.1:1 refused the connection*"])
    assert "hunter2" not in result.stdout.str() + result.stderr.str()


def test_a_server_of_another_version_than_asked_for_is_refused(project: Project) -> None:
    result = project.run("--pgdbm-server-version=99", test="async def test_one(users_db): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "  url: the server (--pgdbm-url) is PostgreSQL *, and 99 is asked for (--pgdbm-server-version)",
            "  to mend it: give the URL of a server of that version,"
            " or ask for another version with --pgdbm-server-version",
        ]
    )
