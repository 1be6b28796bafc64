"""Sets that wait with a kept server for the next run, end to end: when it has them, and when it builds its own."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from scenes import Scene

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by POSIX signals")

TELLS = """
import json, pathlib

async def test_tells(users_db, pgdbm_server):
    told = {
        "url": pgdbm_server.url,
        "mine": pgdbm_server.database,
        "schema": users_db.schema,
        "applied": str(await users_db.fetch_all("select * from {{tables.schema_migrations}} order by 1")),
        "users": [row["email"] for row in await users_db.fetch_all("select email from {{tables.users}} order by id")],
        "columns": [row["column_name"] for row in await users_db.fetch_all(
            "select column_name from information_schema.columns where table_schema = $1 and table_name = 'users'",
            users_db.schema,
        )],
        "schemas": [row["nspname"] for row in await users_db.fetch_all(
            "select nspname from pg_namespace where nspname ~ '^pgdbm_' order by 1"
        )],
        "databases": [row["datname"] for row in await users_db.fetch_all("select datname from pg_database")],
    }
    told["next"] = await users_db.fetch_value(
        "insert into {{tables.users}} (email) values ('new') returning id"
    )
    pathlib.Path(__file__).with_name("told.json").write_text(json.dumps(told))
"""

SEEDED = """
from pytest_pgdbm import pgdbm_db

users_db = pgdbm_db("users", seed=%s)
"""

ROWS = {"users": [{"id": 10, "email": "ann"}, {"id": 20, "email": "bob"}]}


def run(scene: Scene, *args: str, test: str = TELLS, passed: int = 1) -> dict[str, Any]:
    """Runs the tests; what `TELLS` has told."""
    return scene.run(*args, test=test, passed=passed)


def write(scene: Scene, name: str, text: str) -> None:
    scene.project.write(name, text)


def waiting() -> list[Path]:
    """The files of the databases that wait."""
    return sorted(Path(os.environ["PGDBM_CACHE_DIR"]).glob("*/pgdbm-*/waiting/*"))


def at(told: dict[str, Any], *statements: str) -> None:
    """Has a superuser do this in the database that a run has told of, while the server waits."""
    (server,) = Path(os.environ["PGDBM_CACHE_DIR"]).glob("*/pgdbm-*/server")
    known = json.loads(server.read_text())

    async def go() -> None:
        connection = await asyncpg.connect(
            host=known["host"], port=known["port"], database=told["mine"], **known["admin"]
        )
        try:
            for statement in statements:
                await connection.execute(statement.replace("SCHEMA", told["schema"]))
        finally:
            await connection.close()

    asyncio.run(go())


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a run had the set of another one, which was not built again."""
    same = one["schema"] == other["schema"]
    assert same == (one["applied"] == other["applied"])
    return same


def test_the_next_run_has_the_set_that_was_built_and_finds_it_as_it_was_then(scene: Scene) -> None:
    first, second, third = (scene.run(test=TELLS, apart=True) for _ in range(3))
    assert is_same(first, second)
    assert is_same(second, third)
    assert third["mine"] == first["mine"]
    assert first["users"] == second["users"] == third["users"] == []
    assert first["next"] == second["next"] == third["next"] == 1
    assert third["databases"] == first["databases"]
    assert third["schemas"] == first["schemas"]


def test_what_sessions_make_for_themselves_changes_nothing(scene: Scene) -> None:
    test = """
    async def test_it(users_db):
        await users_db.execute("create temp table t (id serial primary key, told text default 'a' unique)")
        await users_db.execute("create function pg_temp.f() returns t language sql as 'select null::pg_temp.t'")
    """
    run(scene, test=test)
    assert len(waiting()) == 1
    assert run(scene)["mine"] == waiting()[0].name


def test_its_file_is_the_users_alone(scene: Scene) -> None:
    run(scene)
    (file,) = waiting()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700


def test_seeded_rows_are_back_after_a_run_that_has_changed_them(scene: Scene) -> None:
    write(scene, "conftest.py", SEEDED % ROWS)
    first = run(scene)
    test = """
    async def test_it(users_db):
        await users_db.execute("update {{tables.users}} set email = 'other' where id = 10")
        await users_db.execute("delete from {{tables.users}} where id = 20")
        await users_db.execute("insert into {{tables.users}} (email) values ('more'), ('and more')")
    """
    run(scene, test=test)
    run(scene, test=test)
    last = run(scene)
    assert is_same(first, last)
    assert last["users"] == first["users"] == ["ann", "bob"]
    assert last["next"] == first["next"] == 1


def test_several_sets_of_one_content_wait(scene: Scene) -> None:
    test = """
    import pytest

    @pytest.mark.parametrize("number", range(20))
    async def test_it(number, users_db):
        assert await users_db.fetch_value("insert into {{tables.users}} (email) values ('a') returning id") == 1
    """
    run(scene, test=test, passed=20)
    (line,) = scene.kept("list")
    sets = int(line.rpartition("keeps ")[2].split()[0])
    assert sets > 1
    first = run(scene)
    assert len(first["schemas"]) == 2 * sets
    run(scene, test=test, passed=20)
    assert run(scene)["schemas"] == first["schemas"]


MIGRATION = "create table {{tables.users}} (id serial primary key, email text not null unique%s);"

CHANGES = {
    "a migration": ("migrations/users/001_users.sql", MIGRATION % ", more text", ["id", "email", "more"], ["ann"]),
    "another migration": (
        "migrations/users/002_more.sql",
        "alter table {{tables.users}} add more text",
        ["id", "email", "more"],
        ["ann"],
    ),
    "a tied service's migration": (
        "migrations/orders/002_more.sql",
        "alter table {{tables.orders}} add more text",
        ["id", "email"],
        ["ann"],
    ),
    "a row of a seed": ("conftest.py", SEEDED % {"users": [{"email": "eve"}]}, ["id", "email"], ["eve"]),
    "the file of a seed": (
        "seed.sql",
        "insert into {{tables.users}} (email) values ('bob')",
        ["id", "email"],
        ["bob"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_set_is_made_from_is_noticed_when_it_changes(scene: Scene, what: str) -> None:
    write(scene, "seed.sql", "insert into {{tables.users}} (email) values ('ann')")
    write(scene, "conftest.py", SEEDED % "'seed.sql'")
    first = run(scene)
    file, text, columns, users = CHANGES[what]
    write(scene, file, text)
    changed = run(scene)
    assert not is_same(first, changed)
    again = run(scene)
    assert is_same(changed, again)
    assert again["schemas"] == [name for name in changed["schemas"] if name not in first["schemas"]]
    assert (again["columns"], again["users"]) == (columns, users)


@pytest.mark.parametrize("what", ["plugin", "pgdbm"])
def test_what_another_version_has_written_counts_as_nothing(scene: Scene, what: str) -> None:
    first = run(scene)
    (file,) = waiting()
    line, _, rest = file.read_bytes().partition(b"\n")
    file.write_bytes(json.dumps({**json.loads(line), what: "0.0"}).encode() + b"\n" + rest)
    second = run(scene)
    assert not is_same(first, second)
    assert first["mine"] not in second["databases"]


def test_a_damaged_file_counts_as_nothing(scene: Scene) -> None:
    first = run(scene)
    (file,) = waiting()
    file.write_bytes(file.read_bytes()[:-200])
    second = run(scene)
    assert not is_same(first, second)
    assert first["mine"] not in second["databases"]
    assert is_same(second, run(scene))


def test_rows_that_were_changed_between_the_runs_are_as_they_were(scene: Scene) -> None:
    write(scene, "conftest.py", SEEDED % ROWS)
    first = run(scene)
    at(
        first,
        "update SCHEMA.users set email = 'other' where id = 10",
        "delete from SCHEMA.users where id = 20",
        "insert into SCHEMA.users (email) values ('more')",
        "select setval('SCHEMA.users_id_seq', 77)",
    )
    second = run(scene)
    assert is_same(first, second)
    assert second["users"] == ["ann", "bob"]
    assert second["next"] == 1


@pytest.mark.parametrize("statement", ["alter table SCHEMA.users drop column email", "drop schema SCHEMA cascade"])
def test_a_set_that_was_changed_between_the_runs_is_built_anew(scene: Scene, statement: str) -> None:
    first = run(scene)
    at(first, statement)
    second = run(scene)
    assert not is_same(first, second)
    assert second["columns"] == ["id", "email"]
    assert first["schema"] not in run(scene)["schemas"]


def test_a_database_that_was_changed_between_the_runs_is_not_used(scene: Scene) -> None:
    first = run(scene)
    at(first, "create table public.left_behind (id int)")
    second = run(scene)
    assert not is_same(first, second)
    assert first["mine"] not in second["databases"]


@pytest.mark.parametrize(
    "statement",
    [
        "create table public.left_behind (id int)",
        "alter default privileges grant select on tables to public",
        "alter database DATABASE set work_mem = '12MB'",
        "select lo_create(0)",
    ],
)
def test_a_database_that_a_test_has_changed_outside_of_its_sets_is_not_kept(scene: Scene, statement: str) -> None:
    first = run(scene)
    test = f"""
    async def test_it(users_db, pgdbm_server):
        await users_db.execute({statement!r}.replace("DATABASE", pgdbm_server.database))
    """
    run(scene, test=test)
    assert waiting() == []
    last = run(scene)
    assert not is_same(first, last)
    assert first["mine"] not in last["databases"]


def test_what_a_killed_run_has_used_is_not_used_again(scene: Scene) -> None:
    first = run(scene)
    scene.start()
    assert waiting() == []
    scene.kill()
    second = run(scene)
    assert not is_same(first, second)
    assert first["mine"] not in second["databases"]


def test_of_two_runs_at_once_one_has_the_sets(scene: Scene) -> None:
    first = run(scene)
    scene.start()
    assert not is_same(first, run(scene))
    scene.kill()


def test_workers_take_what_waits_and_no_more_waits_than_the_last_run_had_workers(scene: Scene) -> None:
    test = """
    import os, pathlib, time, pytest

    @pytest.mark.parametrize("number", range(4))
    async def test_it(number, users_db, testrun_uid):
        assert await users_db.fetch_value("insert into {{tables.users}} (email) values ('a') returning id") == 1
        here = pathlib.Path(__file__).parent
        here.joinpath(f"{testrun_uid}-{os.getpid()}").touch()
        until = time.monotonic() + 20
        while len(list(here.glob(f"{testrun_uid}-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.02)  # one worker is to have its database while the other has one too
    """
    run(scene, "-n", "2", test=test, passed=4)
    two = {file.name for file in waiting()}
    assert len(two) == 2
    run(scene, "-n", "2", test=test, passed=4)
    assert {file.name for file in waiting()} == two
    alone = run(scene)
    assert alone["mine"] in two
    assert [file.name for file in waiting()] == [alone["mine"]]
    assert [name for name in alone["databases"] if name.startswith("pgdbm")] == [alone["mine"]]
    run(scene, "-n", "2", test=test, passed=4)
    assert alone["mine"] in {file.name for file in waiting()}


def test_a_set_that_a_function_has_seeded_is_not_kept(scene: Scene) -> None:
    write(
        scene,
        "conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        async def load(db):
            await db.execute("insert into {{tables.users}} (email) values ('ann')")

        users_db = pgdbm_db("users", seed=load)
        """,
    )
    first = run(scene)
    assert first["users"] == ["ann"]
    assert waiting() == []
    assert not is_same(first, run(scene))


@pytest.mark.parametrize("option", ["--pgdbm-reuse=off", "--pgdbm-isolation=database"])
def test_sets_that_are_not_used_again_within_a_run_are_not_kept_for_the_next(scene: Scene, option: str) -> None:
    run(scene)
    run(scene, option, test="async def test_it(users_db):\n    await users_db.execute('select 1')")
    assert waiting() == []


def test_extensions_that_the_plugin_makes_are_kept_with_the_sets(scene: Scene) -> None:
    write(scene, "conftest.py", SEEDED % "(), extensions='citext'")
    first = run(scene)
    assert is_same(first, run(scene))
    write(scene, "conftest.py", SEEDED % "(), extensions=('citext', 'hstore')")
    second = run(scene)
    assert second["mine"] == first["mine"]
    assert is_same(second, run(scene))


def test_the_order_of_migrations_is_warned_of_in_each_run(scene: Scene) -> None:
    write(scene, "pytest.ini", "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    write(scene, "migrations/users/10_a.sql", "select 1")
    write(scene, "migrations/users/9_b.sql", "select 1")
    scene.project.write("test_it.py", TELLS)
    for _ in range(2):
        result = scene.project.run_apart("--pgdbm-keep-alive=5")
        result.stdout.fnmatch_lines(["*10_a.sql runs before 9_b.sql*"])
