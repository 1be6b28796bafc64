"""What replicates from or to a test's own database: no later test has it, and what keeps the database is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project
from deaths.clusters import Cluster, a_cluster

DATABASES = "select datname from pg_database where datname ~ '^pgdbm_'"


@pytest.fixture(scope="module")
def publisher(cached_cluster: Path) -> Iterator[Cluster]:
    """A server that can decode what it has logged."""
    with a_cluster(cached_cluster, wal_level="logical", max_wal_senders=2) as cluster:
        yield cluster


@pytest.fixture
def published(pytester: pytest.Pytester, publisher: Cluster) -> Project:
    return Project(pytester, publisher.boss)


def run(project: Project, acts: str, sees: str) -> pytest.RunResult:
    """Runs a test that does the one, and one that must not see it."""
    return project.run(
        "--pgdbm-isolation=database",
        "-v",
        test=f"""
        async def test_acts(users_db):
            await users_db.execute({acts!r})

        async def test_after(users_db):
            assert await users_db.fetch_value({sees!r}) == 0
        """,
    )


def test_a_slot_that_a_test_has_left_goes_with_its_database(published: Project, publisher: Cluster) -> None:
    before = publisher.ask(DATABASES)
    result = run(
        published,
        "select pg_create_logical_replication_slot('left_' || pg_backend_pid(), 'pgoutput')",
        "select count(*) from pg_replication_slots where database = current_database()",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["  test_it.py::test_acts: new: replication slot left_*"])
    assert publisher.ask(DATABASES) == before
    assert publisher.ask("select from pg_replication_slots") == []


def test_a_subscription_that_a_test_has_left_keeps_its_database_which_is_told(
    published: Project, publisher: Cluster
) -> None:
    before = publisher.ask(DATABASES)
    result = run(
        published,
        "create subscription left_over connection 'dbname=x' publication p with (connect = false)",
        "select count(*) from pg_subscription where subdbid ="
        " (select oid from pg_database where datname = current_database())",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*PgdbmWarning: database pgdbm_*_main_1 of test_it.py::test_acts was kept: the server refused to drop it:"
            " database * is being used by logical replication subscription",
            "  test_it.py::test_acts: new: subscription left_over",
        ]
    )
    assert len(publisher.ask(DATABASES)) == len(before) + 1
