"""Sets that are leased again and again: no test sees what another did, and what is wrong is told of the right one."""

from __future__ import annotations

import json
from collections.abc import Callable

import asyncpg
import pytest
from conftest import Project

CONFTEST = """
import json
import pytest
from pytest_pgdbm import pgdbm_db

users_db = pgdbm_db("users")
schemas = []

@pytest.fixture(autouse=True, scope="session")
def told():
    yield
    with open("schemas.json", "w") as file:
        json.dump(schemas, file)

@pytest.fixture
def db(users_db):
    schemas.append(users_db.schema)
    return users_db
"""

Query = Callable[[str], list[asyncpg.Record]]

ADD = "insert into {{tables.users}} (email) values ($1) returning id"


@pytest.fixture
def reused(project: Project) -> Project:
    project.write("conftest.py", CONFTEST)
    return project


def schemas_of(project: Project) -> list[str]:
    names: list[str] = json.loads((project.path / "schemas.json").read_text())
    return names


MANY = f"""
import pytest

@pytest.mark.parametrize("number", range(40))
async def test_it(db, number):
    assert await db.fetch_value("select count(*) from {{{{tables.users}}}}") == 0
    assert await db.fetch_value({ADD!r}, f"{{number}}@example.org") == 1
    assert await db.fetch_value({ADD!r}, f"{{number}}@example.com") == 2
"""


def test_a_few_schemas_serve_many_tests_and_none_is_left(reused: Project, query: Query) -> None:
    reused.run(test=MANY).assert_outcomes(passed=40)
    used = schemas_of(reused)
    assert len(used) == 40
    assert len(set(used)) <= 3
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm_'") == []


def test_switched_off_each_test_has_a_schema_of_its_own(reused: Project) -> None:
    reused.run("--pgdbm-reuse=off", test=MANY).assert_outcomes(passed=40)
    assert len(set(schemas_of(reused))) == 40


def test_the_marker_chooses_for_a_test(reused: Project) -> None:
    marked = MANY + '\n@pytest.mark.pgdbm(reuse="off")' + MANY.split("import pytest")[1].replace("test_it", "test_new")
    reused.run(test=marked).assert_outcomes(passed=80)
    used = schemas_of(reused)
    assert len(set(used[:40])) <= 3
    assert len(set(used[40:])) == 40
    assert not set(used[:40]) & set(used[40:])


def test_what_a_test_changes_in_the_structure_no_other_test_sees(reused: Project) -> None:
    result = reused.run(
        "-v",
        test=f"""
        import pytest

        @pytest.mark.parametrize("number", range(8))
        async def test_it(db, number):
            await db.execute("alter table {{{{tables.users}}}} add column nickname text")
            assert await db.fetch_value({ADD!r}, "a@example.org") == 1
        """,
    )
    result.assert_outcomes(passed=8)
    assert len(set(schemas_of(reused))) == 8
    result.stdout.fnmatch_lines(
        [
            "schemas were built anew after these tests, since they could not be used again:",
            "  test_it.py::test_it[[]0[]]: new: column *users.nickname*",
        ]
    )


LEAVES = """
import asyncpg
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def outside(pgdbm_url):
    connection = await asyncpg.connect(pgdbm_url)
    yield connection
    connection.terminate()

async def test_leaves(db, outside):
    await outside.execute("begin")
    await outside.execute(db.prepare_query("insert into {{tables.users}} (email) values ('a')"))

async def test_next(db):
    assert await db.fetch_value("select count(*) from {{tables.users}}") == 0
"""


def test_what_is_found_late_is_told_of_the_test_that_did_it(reused: Project) -> None:
    result = reused.run("-W", "default", test=LEAVES)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_leaves",
            "*PgdbmLeakWarning: test_it.py::test_leaves ended, and a connection still held locks*",
        ]
    )
    assert len(set(schemas_of(reused))) == 2


def test_what_leaves_no_lock_is_told_once_and_the_schemas_are_not_used_again(reused: Project, query: Query) -> None:
    reused.write("migrations/users/002.sql", "create function {{schema}}.one() returns int language sql as 'select 1';")
    test = LEAVES.replace(
        "\"insert into {{tables.users}} (email) values ('a')\"", '"alter function {{schema}}.one() immutable"'
    )
    result = reused.run(
        "-v", "-W", "default", test=test + LEAVES[LEAVES.index("async def test_next") :].replace("next", "last")
    )
    result.assert_outcomes(passed=3, warnings=2)
    result.stdout.fnmatch_lines(
        [
            "*_users of test_it.py::test_leaves was kept: locked, perhaps by server process*",
            "*PgdbmLeakWarning: test_it.py::test_leaves ended, and a connection was in a transaction that had written*",
            "  test_it.py::test_leaves: a transaction from before the end of the test has written something: server p*",
        ]
    )
    # The session's fixture has ended the transaction by then, so that all can go.
    summary = result.stdout.str().partition(" pgdbm =")[2]
    assert "schemas were built anew" in summary
    assert "was kept" not in summary
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm_'") == []


def test_sets_of_one_test_that_it_tied_together_are_dropped_together(reused: Project, query: Query) -> None:
    for service in ("here", "there"):
        reused.write(f"migrations/{service}/001.sql", "create table {{tables.things}} (id int primary key);")
    result = reused.run(
        "-v",
        "-W",
        "error::pytest_pgdbm.PgdbmWarning",
        test="""
        async def test_ties(pgdbm_db):
            here, there = await pgdbm_db("here"), await pgdbm_db("there")
            await here.execute("create view {{schema}}.v as select id from {{tables.there.things}}")
            await there.execute("alter table {{tables.things}} add other int references {{tables.here.things}}")

        async def test_next(pgdbm_db):
            assert await (await pgdbm_db("there")).fetch_all("select * from {{tables.things}}") == []
        """,
    )
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*was kept*")
    assert query("select nspname from pg_namespace where nspname ~ '^pgdbm_'") == []


def test_where_warnings_are_errors_a_late_finding_is_an_error_of_the_test_that_did_it(reused: Project) -> None:
    result = reused.run("-W", "error::pytest_pgdbm.PgdbmLeakWarning", test=LEAVES)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["ERROR test_it.py::test_leaves*"])


def test_a_set_whose_seed_is_a_function_is_never_built_beside_a_test(reused: Project) -> None:
    reused.write(
        "conftest.py",
        """
        import pytest
        from pytest_pgdbm import pgdbm_db

        at_work = []

        async def load(db):
            assert not at_work
            await db.execute("insert into {{tables.users}} (email) values ('seed@example.org')")

        users_db = pgdbm_db("users", seed=load)

        @pytest.fixture
        def db(users_db):
            at_work.append(1)
            yield users_db
            at_work.clear()
        """,
    )
    reused.run(
        test="""
        import pytest

        @pytest.mark.parametrize("number", range(30))
        async def test_it(db, number):
            assert await db.fetch_value("select count(*) from {{tables.users}}") == 1
            await db.execute("update {{tables.users}} set email = 'changed'")
            await db.execute("insert into {{tables.users}} (email) values ('b@example.org')")
        """
    ).assert_outcomes(passed=30)


def test_everything_in_a_fresh_loop_in_a_thread_too(reused: Project) -> None:
    reused.run(
        test=f"""
        import asyncio
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_it(db, number):
            async def go():
                assert await db.fetch_value({ADD!r}, "a@example.org") == 1
            asyncio.run(go())
        """
    ).assert_outcomes(passed=12)
    assert len(set(schemas_of(reused))) <= 3
