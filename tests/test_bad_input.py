"""What is wrong with a project or a URL is told at the earliest moment, in words, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from conftest import Project

from pytest_pgdbm.connections import crowd
from pytest_pgdbm.connections.login import dsn
from pytest_pgdbm.fixtures import SESSION

Query = Callable[..., list[Any]]

ASKS = "async def test_it(pgdbm_db):\n    await pgdbm_db({!r})\n"


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever went wrong, no schema of the plugin is in the database afterwards."""
    query: Query = request.getfixturevalue("query")
    yield
    assert query("select nspname from pg_namespace where nspname like 'pgdbm%'") == []


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            {"a/001.sql": "create table {{tables.t}} (id int);\ncreate tabel {{tables.u}} (id int);"},
            ["E*a migration of service 'a' failed", "E*a/001.sql, line 2", 'E*syntax error at or near "tabel"'],
        ),
        (
            {"a/001.sql": "create table {{tables.t}} (id int);\n\n\ncreate table {{tables.t}} (id int);"},
            ["E*a/001.sql, line 4", 'E*the server says: relation "t" already exists'],
        ),
        (
            {
                "a/001.sql": "create table {{tables.t}} (id int);",
                "a/002.sql": "select 1;\ndo $$ begin\nraise 'no'; end $$",
            },
            ["E*a/002.sql, line 3", "E*the server says: no"],
        ),
        (
            {"a/001.sql": "-- pgdbm:no-transaction\nselect 1;\nselect nothing();"},
            ["E*a/001.sql, line 3", "E*function nothing() does not exist"],
        ),
        (
            {"a/001.sql": "create table forgotten (id int);"},
            ["E*a/001.sql*", "E*write {{tables.x}}*"],
        ),
        (
            {"a/001.sql": "create table {{tables.t}} (id int references {{tables.missing.t}});"},
            [
                "E*a/001.sql, line 1",
                'E*schema "missing" does not exist',
                "E*HINT:  if {{tables.missing.*}} is meant for a service: those that can be named here are 'a'. *",
            ],
        ),
        (
            {
                "a/001.sql": "create table {{tables.t}} (id int primary key);",
                "users/002.sql": "create table {{tables.u}} (id int references {{tables.usrs.users}});",
            },
            [
                "E*users/002.sql, line 1",
                "E*those that can be named here are 'orders', 'users'; did you mean 'users'[?] *",
            ],
        ),
        ({"a/001_x.sql": "select 1", "a/001_y.sql": "select 2"}, ["E*001_x.sql*001_y.sql*"]),
        ({"a/001.sql": ""}, ["E*001.sql*empty*"]),
        ({"a/001.sql": "\ufeffselect 1"}, ["E*001.sql*byte order mark*"]),
        (
            {
                "a/001.sql": "create table {{tables.t}} (id int);\nselect 1 from {{tables.b.t}};",
                "b/001.sql": "select 1 from {{tables.a.t}};",
            },
            ["E*a needs b (*a/001.sql:2)*b needs a (*b/001.sql:1)*"],
        ),
        (
            {"a/001.sql": "create table public.outside (id int);"},
            ["E*a migration reached outside its schema", "E*public.outside*", "E*to mend it: write {{tables.x}}*"],
        ),
    ],
    ids=[
        "syntax",
        "found by replay",
        "in a block",
        "without transaction",
        "no schema",
        "unknown service",
        "misspelt service",
        "one number twice",
        "empty",
        "byte order mark",
        "ring",
        "outside",
    ],
)
def test_wrong_migrations(project: Project, files: dict[str, str], lines: list[str]) -> None:
    for name, text in files.items():
        project.write(f"migrations/{name}", text)
    asked = "users" if "users/002.sql" in files else "a"
    project.run("--pgdbm-role=user", test=ASKS.format(asked)).stdout.fnmatch_lines(lines)
    if "public" in str(files):
        project.run(test=ASKS.format("a")).assert_outcomes(failed=1)


def test_a_folder_that_is_missing_is_told_where_it_is_declared(project: Project) -> None:
    project.write("conftest.py", "from pytest_pgdbm import pgdbm_db\na_db = pgdbm_db('a', migrations='migratoins/a')\n")
    project.write("migrations/a/001.sql", "select 1")
    result = project.run(test="async def test_it(a_db): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'a'*migratoins/a*"])


def test_two_folders_for_one_service_in_one_file_are_a_contradiction(project: Project) -> None:
    declared = ["a_db = pgdbm_db('a', migrations='x')", "b_db = pgdbm_db('a', migrations='y')"]
    project.write("conftest.py", "\n".join(["from pytest_pgdbm import pgdbm_db", *declared]))
    result = project.run(test="async def test_it(a_db): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["contradictory declarations of service 'a' *: migrations='x' in line 2, migrations='y' in line 3;*"]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("pgdbm_db('users', scope='modul')", "*scope='modul' is none of function, class, module, package, session*"),
        ("pgdbm_db('users', seed=lambda db: None)", "*async def*"),
        ("pgdbm_db('users', migrations=3)", "*migrations=3*"),
        ("pgdbm_db('users', 'orders', seed='a.sql')", "*several services takes no other arguments*"),
        ("pgdbm_database(3)", "*pgdbm_database(3): a service's name is a text*"),
    ],
)
def test_a_declaration_that_cannot_be_right_fails_where_it_stands(project: Project, call: str, message: str) -> None:
    project.write("conftest.py", f"from pytest_pgdbm import pgdbm_database, pgdbm_db\nusers_db = {call}\n")
    result = project.run_apart(test="def test(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*conftest.py:2*", message])
    result.stderr.no_fnmatch_line("*pytest_pgdbm/*")


def test_no_name_needs_one_service(project: Project) -> None:
    result = project.run(test="async def test_it(pgdbm_db):\n    await pgdbm_db()\n")
    result.stdout.fnmatch_lines(["E*pgdbm_db() without a name needs exactly one known service; known: orders, users"])


def test_a_name_that_is_no_text_is_told(project: Project) -> None:
    calls = ["pgdbm_db(3)", "pgdbm_db(None)", "pgdbm_db('users', ['orders'])", "pgdbm_db(3, seed={})"]
    calls += ["pgdbm_database(3)", "pgdbm_database('')"]
    tests = [f"def test_{at}(pgdbm_db, pgdbm_database):\n    {call}.get()" for at, call in enumerate(calls)]
    result = project.run(test="\n\n".join(tests))
    result.assert_outcomes(failed=6)
    told = [
        "pgdbm_db(3)",
        "pgdbm_db(None)",
        "pgdbm_db(['orders'])",
        "pgdbm_db(3)",
        "pgdbm_database(3)",
        "pgdbm_database('')",
    ]
    lines = [line for line in result.outlines if line.startswith("E  ")]
    assert [line.partition("ConfigError: ")[2] for line in lines] == [
        f"{call}: a service's name is a text" for call in told
    ]


def test_a_lease_that_nobody_waited_for_says_so(project: Project) -> None:
    result = project.run(
        test="""
        import copy, inspect

        async def test_forgotten(pgdbm_db):
            await pgdbm_db("users").fetch_value("select 1")

        def test_forgotten_get(pgdbm_database):
            pgdbm_database("users").url

        async def test_it_is_an_object_as_others(pgdbm_db):
            lease = pgdbm_db("users")
            assert not hasattr(lease, "fetch_value") and not hasattr(lease, "__fspath__")
            assert getattr(lease, "url", None) is None
            assert inspect.isawaitable(lease) and not callable(lease)
            assert (await copy.copy(lease)) is (await lease)
            try:
                lease.__html__
            except AttributeError as error:
                assert str(error) == "'Lease' object has no attribute '__html__'"
                assert (error.name, error.obj) == ("__html__", lease)
            for name, value in inspect.getmembers(lease):
                assert name
        """
    )
    result.assert_outcomes(passed=1, failed=2)
    told = (
        "; what has it comes of awaiting this object, as in 'db = await pgdbm_db(*)', or in a synchronous test of its"
    )
    result.stdout.fnmatch_lines(
        [
            f"E*AttributeError: 'Lease' object has no attribute 'fetch_value'{told} get(), as in 'db = *.get()'",
            f"E*AttributeError: 'Lease' object has no attribute 'url'{told} get(), *",
        ]
    )


@pytest.mark.parametrize(
    ("seed", "lines"),
    [
        ("'bad.sql'", ["*a seed of service 'users' failed", "*bad.sql, line 2", "*the server says: *nope*"]),
        ("'gone.sql'", ["a seed of service 'users', declared at *conftest.py:8: the file *gone.sql does not exist*"]),
        ("{'users': [{'email': 'a'}, {'emial': 'b'}]}", ["*at row 2 of table 'users'", '*column "emial"*']),
        ("load", ["*a seed of service 'users' failed in load()", "*RuntimeError: out of seeds"]),
    ],
    ids=["file", "missing file", "rows", "function"],
)
def test_a_seed_that_fails(project: Project, seed: str, lines: list[str]) -> None:
    project.write(
        "bad.sql", "insert into {{tables.users}} (email) values ('a');\ninsert into {{tables.users}} (nope) values (1);"
    )
    project.write(
        "conftest.py",
        f"""
        from pytest_pgdbm import pgdbm_db

        async def load(db):
            await db.execute("insert into {{{{tables.users}}}} (email) values ('a')")
            raise RuntimeError("out of seeds")

        users_db = pgdbm_db("users", seed={seed})
        """,
    )
    result = project.run(test="async def test_it(users_db): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(lines)


@pytest.mark.parametrize("isolation", ["schema", "database"])
def test_a_missing_seed_is_the_affair_of_who_asks_for_its_service(project: Project, isolation: str) -> None:
    project.write(
        "conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        users_db = pgdbm_db("users")
        orders_db = pgdbm_db("orders", needs="users", seed=[{"orders": []}, "sed.sql"])
        """,
    )
    project.write("seed.sql", "")
    result = project.run(
        f"--pgdbm-isolation={isolation}",
        test="""
        import pytest

        async def test_another(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0

        async def test_its_own(orders_db): pass

        async def test_by_name(pgdbm_db):
            await pgdbm_db("orders")

        @pytest.mark.pgdbm(seed={"users": "gone.sql"})
        async def test_marked(users_db): pass
        """,
    )
    result.assert_outcomes(passed=1, failed=1, errors=2)
    told = "a seed of service 'orders', declared at */conftest.py:5: the file */sed.sql does not exist; did you mean *"
    result.stdout.fnmatch_lines(
        [told, "a seed of service 'users', given by the marker pgdbm(seed=*): the file */gone.sql*"]
    )
    result.stdout.fnmatch_lines([f"E*{told}"])


def test_a_name_without_a_template_in_a_test_gets_our_hint(project: Project) -> None:
    result = project.run(test="async def test_it(users_db):\n    await users_db.fetch_all('select * from users')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*write {{tables.users}}*"])


def test_a_template_that_misspells_a_service_gets_our_hint(project: Project) -> None:
    result = project.run(
        test="""
        async def test_read(users_db):
            await users_db.fetch_all("select * from {{tables.usrs.users}}")

        async def test_make(users_db):
            await users_db.execute("create table {{tables.usrs.more}} (id int)")
        """
    )
    result.assert_outcomes(failed=2)
    named = "E*{{tables.usrs.*}} is meant for a service: *are 'orders', 'users'; did you mean 'users'[?] needs=*"
    result.stdout.fnmatch_lines(['E*relation "usrs.users" does not exist', named])
    result.stdout.fnmatch_lines(['E*schema "usrs" does not exist', named])


# ------------------------------------------------------------------ URLs


class Boss:
    """The superuser of the tests' own server."""

    def __init__(self, request: pytest.FixtureRequest, database_url: str) -> None:
        endpoint = request.config.stash[SESSION]._endpoint
        if not endpoint.own:
            pytest.skip("roles are made as a superuser, who is known on a server of the run's own only")
        self.database = database_url.rpartition("/")[2]
        self._dsn = dsn(endpoint, self.database, endpoint.admin)
        self.host = f"{endpoint.host}:{endpoint.port}"
        self.pleb = f"pleb_of_{self.database}"

    def does(self, statement: str) -> None:
        """Executes a statement."""

        async def go() -> None:
            connection = await asyncpg.connect(self._dsn)
            await connection.execute(statement)
            await connection.close()

        asyncio.run(go())

    def url(self, user: str, password: str, host: str = "", database: str = "") -> str:
        """A URL with this login."""
        return f"postgresql://{user}:{quote(password, safe='')}@{host or self.host}/{database or self.database}"


SECRET = "s:e@c/r%t?"


@pytest.fixture
def boss(request: pytest.FixtureRequest, database_url: str) -> Iterator[Boss]:
    """Makes a role who may connect and no more."""
    boss = Boss(request, database_url)
    boss.does(f"create role {boss.pleb} login password '{SECRET}'")
    yield boss
    boss.does(f"drop owned by {boss.pleb}; drop role {boss.pleb}")


def _refused(project: Project, url: str) -> str:
    project.url = url
    result = project.run("-vv", "--showlocals", test="async def test_it(users_db): pass")
    result.assert_outcomes(errors=1)
    output = result.stdout.str() + result.stderr.str()
    for secret in (SECRET, quote(SECRET, safe="")):
        assert secret not in output
    return output


def test_what_a_server_says_no_to_is_told_with_what_mends_it(
    project: Project, boss: Boss, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _refused(project, boss.url(boss.pleb, SECRET))
    assert f'role "{boss.pleb}" may not create schemas in database' in said
    assert "GRANT CREATE ON DATABASE" in said
    said = _refused(project, boss.url(boss.pleb, "wrong"))
    assert f'password authentication failed for user "{boss.pleb}"' in said
    said = _refused(project, boss.url(boss.pleb, SECRET, database="missing"))
    assert 'database "missing" does not exist' in said
    said = _refused(project, boss.url(boss.pleb, SECRET, host="127.0.0.1:1"))
    assert "127.0.0.1:1 refused the connection" in said
    said = _refused(project, boss.url(boss.pleb, SECRET, host="no-such-host.invalid"))
    assert "is not known" in said
    said = _refused(project, boss.url(boss.pleb, SECRET) + "?sslmode=require")
    assert "to mend it" in said
    boss.does(f'grant create on database "{boss.database}" to {boss.pleb}; alter role {boss.pleb} connection limit 0')
    monkeypatch.setattr(crowd, "SECONDS_TO_WAIT", 0)
    said = _refused(project, boss.url(boss.pleb, SECRET))
    assert "too many connections" in said
    boss.does(f"alter role {boss.pleb} connection limit -1")
    boss.does(f"alter role {boss.pleb} set default_transaction_read_only = on")
    said = _refused(project, boss.url(boss.pleb, SECRET))
    assert "read-only" in said


def test_a_role_that_can_only_create_schemas_is_enough(project: Project, boss: Boss) -> None:
    boss.does(f'grant create on database "{boss.database}" to {boss.pleb}')
    project.url = boss.url(boss.pleb, SECRET)
    project.run(
        test="async def test_it(users_db):\n    await users_db.fetch_all('select * from {{tables.users}}')\n"
    ).assert_outcomes(passed=1)


# ------------------------------------------------------------------ ends


SLOW = "create table {{tables.t}} (id int);\nselect pg_sleep(30);"


def test_a_cancelled_task_leaves_no_schema_and_the_next_test_works(project: Project) -> None:
    project.write("migrations/slow/001.sql", SLOW)
    project.run(
        test="""
        import asyncio, pytest

        async def test_cancelled(pgdbm_db):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pgdbm_db("slow"), 0.5)

        async def test_next(users_db):
            assert await users_db.fetch_value("select 1") == 1
        """
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("place", ["the fixture", "the test"])
def test_ctrl_c_leaves_no_schema(project: Project, query: Query, place: str) -> None:
    project.write("migrations/slow/001.sql", SLOW)
    project.write(
        "conftest.py", "from pytest_pgdbm import pgdbm_db\nslow_db = pgdbm_db('slow')\nusers_db = pgdbm_db('users')\n"
    )
    body = (
        "async def test_it(slow_db): pass"
        if place == "the fixture"
        else ("async def test_it(users_db):\n    await users_db.fetch_value('select pg_sleep(30)')\n")
    )
    project.write("test_it.py", body)
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", f"--pgdbm-url={project.url}"],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sleeping = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
    deadline = time.monotonic() + 30
    while not query(sleeping):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=30)
    assert "KeyboardInterrupt" in output
    assert query(sleeping) == []
