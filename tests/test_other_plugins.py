"""Beside other plugins, and in the ways in which xdist can be told to spread tests."""

from __future__ import annotations

import pytest
from conftest import INI, Project

EMPTY = """
async def is_empty(db):
    assert await db.fetch_value("select count(*) from {{tables.users}}") == 0
    await db.execute("insert into {{tables.users}} (email) values ('a')")
"""


def load(project: Project, plugin: str) -> None:
    """A plugin that the runs of other tests do without."""
    pytest.importorskip("pytest_rerunfailures" if plugin == "rerunfailures" else plugin)
    project.write("pytest.ini", INI.replace(f" -p no:{plugin}", ""))


@pytest.mark.parametrize("more", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_test_that_is_run_again_begins_anew(project: Project, more: tuple[str, ...]) -> None:
    project.write("helper.py", EMPTY)
    load(project, "rerunfailures")
    test = """
    import pathlib
    from helper import is_empty

    async def test_it(users_db):
        await is_empty(users_db)
        times = pathlib.Path(__file__).with_name("times")
        with times.open("a") as file:
            file.write(users_db.schema + " ")
        assert len(times.read_text().split()) == 3
    """
    result = project.run_apart("--reruns=4", *more, test=test)
    result.stdout.fnmatch_lines(["*1 passed, 2 rerun in *"])


def test_what_tests_cover_is_measured_in_workers_too(project: Project) -> None:
    load(project, "pytest_cov")
    project.write(
        "app.py",
        """
        async def add(db):
            await db.execute("insert into {{tables.users}} (email) values ('a')")
            return await db.fetch_value("select count(*) from {{tables.users}}")
        """,
    )
    test = "import app\nasync def test_it(users_db): assert await app.add(users_db) == 1"
    result = project.run_apart("--cov=app", "--cov-report=term-missing", "-n", "1", test=test)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["app.py * 3 * 0 * 100%*"])


@pytest.mark.parametrize("how", [("-n", "0"), ("-n", "2", "--dist=loadgroup")], ids=["in no worker", "in groups"])
def test_however_xdist_spreads_them_each_test_has_its_own(project: Project, how: tuple[str, ...]) -> None:
    project.write("helper.py", EMPTY)
    test = """
    import pytest
    from helper import is_empty

    @pytest.mark.xdist_group("one")
    @pytest.mark.parametrize("n", range(4))
    async def test_it(users_db, n): await is_empty(users_db)

    @pytest.mark.parametrize("n", range(4))
    async def test_other(users_db, n): await is_empty(users_db)
    """
    project.run_apart(*how, test=test).assert_outcomes(passed=8)
