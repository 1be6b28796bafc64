"""What a user gets, each in a run of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Project

from pytest_pgdbm import report

Query = Callable[..., list[Any]]


def test_each_test_gets_an_empty_migrated_schema_and_nothing_is_left(project: Project, query: Query) -> None:
    result = project.run(
        test="""
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        async def test_insert(users_db, time):
            sql = "insert into {{tables.users}} (email) values ('a@example.org') returning id"
            assert await users_db.fetch_value(sql) == 1
        """
    )
    result.assert_outcomes(passed=2)
    assert query("select nspname from pg_namespace where nspname like 'pgdbm%'") == []


def test_the_factory_serves_asynchronous_and_synchronous_tests(project: Project) -> None:
    project.run(
        test="""
        import asyncio

        from pytest_pgdbm import Database

        COUNT = "select count(*) from {{tables.users}}"

        async def test_awaited(pgdbm_db):
            users = await pgdbm_db("users")
            assert isinstance(users, Database) and users.service == "users"
            assert await users.fetch_value(COUNT) == 0

        def test_without_a_loop(pgdbm_db):
            users = pgdbm_db("users").get()
            assert asyncio.run(users.fetch_value(COUNT)) == 0

        async def test_twice_is_the_same(pgdbm_db, users_db):
            assert await pgdbm_db("users") is users_db

        async def test_fresh_is_another(pgdbm_db, users_db):
            other = await pgdbm_db("users", fresh=True)
            assert other.schema != users_db.schema
            await other.execute("insert into {{tables.users}} (email) values ('a')")
            assert await users_db.fetch_value(COUNT) == 0
            assert await pgdbm_db("users") is users_db

        async def test_several_are_a_tuple_in_the_order_asked(pgdbm_db):
            orders, users = await pgdbm_db("orders", "users")
            assert (orders.service, users.service) == ("orders", "users")

        async def test_at_once(pgdbm_db):
            users, orders, again = await asyncio.gather(pgdbm_db("users"), pgdbm_db("orders"), pgdbm_db("users"))
            assert users is again and orders.sibling("users") is users
        """
    ).assert_outcomes(passed=6)


def test_tied_services_are_one_set_however_they_are_asked_for(project: Project) -> None:
    project.write("migrations/audit/001_log.sql", "create table {{tables.log}} (id int);")
    project.run(
        test="""
        from pytest_pgdbm import pgdbm_db

        orders_db = pgdbm_db("orders")

        async def test_foreign_keys_meet(users_db, orders_db, pgdbm_db):
            user = await users_db.fetch_value("insert into {{tables.users}} (email) values ('a') returning id")
            await orders_db.execute("insert into {{tables.orders}} (user_id) values ($1)", user)
            assert await orders_db.fetch_value("select count(*) from {{tables.users.users}}") == 1
            assert (await pgdbm_db("orders")) is orders_db
            assert users_db.sibling("orders") is orders_db

        async def test_untied_services_can_still_name_each_other(users_db, pgdbm_db):
            audit = await pgdbm_db("audit")
            assert await audit.fetch_value("select count(*) from {{tables.users.users}}") == 0
            assert await users_db.fetch_value("select count(*) from {{tables.audit.log}}") == 0

        async def test_the_set_holds_no_stranger(users_db):
            import pytest
            from pytest_pgdbm import UnknownService
            with pytest.raises(UnknownService):
                users_db.sibling("audit")
        """
    ).assert_outcomes(passed=3)


def test_wider_scopes_share_a_schema_and_function_scope_does_not(project: Project, query: Query) -> None:
    result = project.run(
        test="""
        import pytest
        from pytest_pgdbm import pgdbm_db

        module_users = pgdbm_db("users", scope="module")
        class_users = pgdbm_db("users", scope="class")
        session_users = pgdbm_db("users", scope="session")
        module_orders = pgdbm_db("orders", scope="module")

        ADD = "insert into {{tables.users}} (email) values ($1)"
        COUNT = "select count(*) from {{tables.users}}"

        async def test_first(module_users, session_users, users_db):
            assert len({module_users.schema, session_users.schema, users_db.schema}) == 3
            for db in (module_users, session_users, users_db):
                await db.execute(ADD, "a")

        async def test_second(module_users, session_users, users_db):
            counts = [await db.fetch_value(COUNT) for db in (module_users, session_users, users_db)]
            assert counts == [1, 1, 0]

        async def test_members_of_one_scope_are_one_set(module_users, module_orders):
            assert module_orders.sibling("users") is module_users

        async def test_the_factory_joins_the_wider_set_that_the_test_uses(module_users, pgdbm_db):
            assert (await pgdbm_db("orders")).sibling("users") is module_users

        async def test_but_not_one_that_it_does_not_use(pgdbm_db):
            assert await (await pgdbm_db("users")).fetch_value(COUNT) == 0

        class TestOne:
            async def test_a(self, class_users):
                await class_users.execute(ADD, "a")

            async def test_b(self, class_users):
                assert await class_users.fetch_value(COUNT) == 1

        class TestTwo:
            async def test_a(self, class_users):
                assert await class_users.fetch_value(COUNT) == 0
        """
    )
    result.assert_outcomes(passed=8)
    assert query("select nspname from pg_namespace where nspname like 'pgdbm%'") == []


def test_declarations_follow_the_rule_of_fixtures(project: Project) -> None:
    project.write("migrations/notes/001.sql", "create table {{tables.notes}} (id int);")
    project.write("conftest.py", "from pytest_pgdbm import pgdbm_db\nnotes_db = pgdbm_db('notes')\n")
    project.write("special/sql/001.sql", "create table {{tables.special}} (id int);")
    project.write(
        "special/conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        notes_db = pgdbm_db("notes", migrations="sql", seed={"special": [{"id": 3}]})
        """,
    )
    project.write(
        "special/test_near.py",
        """
        async def test_the_nearest_wins(notes_db):
            assert await notes_db.fetch_value("select id from {{tables.special}}") == 3

        async def test_for_the_factory_too(pgdbm_db):
            assert await (await pgdbm_db("notes")).fetch_value("select id from {{tables.special}}") == 3
        """,
    )
    project.write(
        "test_far.py",
        """
        async def test_the_outer_one(notes_db):
            assert await notes_db.fetch_value("select count(*) from {{tables.notes}}") == 0
        """,
    )
    project.run().assert_outcomes(passed=3)


def test_services_come_from_the_ini_from_an_override_and_from_arguments(project: Project) -> None:
    for place in ("ini", "override", "given"):
        project.write(f"{place}/001_t.sql", "create table {{tables.t}} (id int);")
    project.write("pytest.ini", (project.path / "pytest.ini").read_text() + "pgdbm_services = billing = ini\n")
    project.write(
        "conftest.py",
        """
        import pytest
        from pathlib import Path
        from pytest_pgdbm import Service

        @pytest.fixture(scope="session")
        def pgdbm_services(pgdbm_services):
            return {**pgdbm_services, "shipping": Service(Path(__file__).parent / "override")}
        """,
    )
    project.run(
        test="""
        import pytest
        from pytest_pgdbm import UnknownService

        COUNT = "select count(*) from {{tables.t}}"

        async def test_ini(pgdbm_db):
            assert await (await pgdbm_db("billing")).fetch_value(COUNT) == 0

        async def test_override(pgdbm_db):
            assert await (await pgdbm_db("shipping")).fetch_value(COUNT) == 0

        async def test_given(pgdbm_db):
            mine = await pgdbm_db("mine", migrations="given", seed={"t": [{"id": 1}]})
            assert await mine.fetch_value(COUNT) == 1

        async def test_unknown(pgdbm_db):
            with pytest.raises(UnknownService) as caught:
                pgdbm_db("biling")
            assert "did you mean 'billing'?" in str(caught.value)
            assert caught.value.known == ("billing", "orders", "shipping", "users")
        """
    ).assert_outcomes(passed=4)


def test_the_marker_chooses_seeds_and_search_path_for_a_test(project: Project) -> None:
    project.write(
        "conftest.py",
        """
        from pytest_pgdbm import pgdbm_db

        users_db = pgdbm_db("users")
        seeded_db = pgdbm_db("users", seed={"users": [{"email": "declared"}]})
        """,
    )
    project.run(
        test="""
        import pytest

        @pytest.mark.pgdbm(seed={"users": {"users": [{"email": "seeded@example.org"}]}})
        async def test_seeded(users_db):
            assert await users_db.fetch_value("select email from {{tables.users}}") == "seeded@example.org"

        @pytest.mark.pgdbm(seed={"users": ()})
        async def test_the_marker_is_nearer_than_a_declared_seed(seeded_db):
            assert await seeded_db.fetch_value("select count(*) from {{tables.users}}") == 0

        async def test_the_declared_seed(seeded_db):
            assert await seeded_db.fetch_value("select email from {{tables.users}}") == "declared"

        async def test_not_seeded(users_db):
            assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 0

        @pytest.mark.pgdbm(search_path="$service, public")
        async def test_path(users_db):
            assert await users_db.fetch_value("select count(*) from users") == 0
            assert await users_db.fetch_value("show search_path") == f"{users_db.schema}, public"

        @pytest.mark.pgdbm(search_path="none")
        async def test_the_servers_own_path(users_db):
            assert await users_db.fetch_value("show search_path") == '"$user", public'

        async def test_pinned(users_db):
            assert await users_db.fetch_value("show search_path") == "pg_catalog"
        """
    ).assert_outcomes(passed=7)


def test_the_search_path_with_the_service_is_set_for_managers_only(project: Project) -> None:
    project.run(
        "--pgdbm-search-path=$service, public",
        test="""
        async def test_path(users_db, pgdbm_pool):
            assert await users_db.fetch_value("show search_path") == f"{users_db.schema}, public"
            assert await pgdbm_pool.fetchval("show search_path") == "public"
            assert await users_db.fetch_value("select count(*) from users") == 0
        """,
    ).assert_outcomes(passed=1)


def test_the_server_fixtures_tell_how_to_connect(project: Project) -> None:
    project.run(
        test="""
        import asyncpg
        from pytest_pgdbm import PgdbmServer

        async def test_server(pgdbm_server, pgdbm_url, pgdbm_pool, users_db):
            assert isinstance(pgdbm_server, PgdbmServer) and pgdbm_server.kind == "url"
            assert pgdbm_url == pgdbm_server.url == users_db.dsn
            connection = await asyncpg.connect(pgdbm_url)
            assert await connection.fetchval("select current_user") == pgdbm_server.user
            assert await connection.fetchval("select current_database()") == pgdbm_server.database
            assert str(connection.get_server_version().major) == pgdbm_server.version.split(".")[0]
            await connection.close()
            assert isinstance(pgdbm_pool, asyncpg.Pool) and users_db.pool is pgdbm_pool

        def test_no_password_in_any_repr(pgdbm_server, pgdbm_url, users_db):
            from urllib.parse import urlsplit
            password = urlsplit(str(pgdbm_url)).password
            assert password
            for shown in (repr(pgdbm_server), str(pgdbm_server), repr(pgdbm_url), repr(users_db), repr(users_db.dsn)):
                assert password not in shown
        """
    ).assert_outcomes(passed=2)


def test_pool_options_are_those_of_the_application(project: Project) -> None:
    project.write(
        "conftest.py",
        """
        import pytest
        from pytest_pgdbm import pgdbm_db

        users_db = pgdbm_db("users")

        @pytest.fixture(scope="session")
        def pgdbm_pool_options():
            return {"statement_timeout_ms": 1234, "max_connections": 3}
        """,
    )
    project.run(
        test="""
        async def test_options(users_db):
            assert await users_db.fetch_value("show statement_timeout") == "1234ms"
            assert (await users_db.get_pool_stats())["max_size"] == 3
        """
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["--collect-only"], ["--fixtures"], ["--markers"], ["--setup-plan"], ["-k", "plain"]],
    ids=lambda args: args[0],
)
def test_no_server_is_started_where_none_is_needed(own_server_project: Project, args: list[str]) -> None:
    # A server that cannot come would say so at once if it were asked for.
    own_server_project.write("test_it.py", "def test_plain(): pass\nasync def test_users(users_db): pass\n")
    result = own_server_project.run("--pgdbm-server-bin=/nowhere", *args)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*could not get a Postgres server*")
    result.stderr.no_fnmatch_line("*could not get a Postgres server*")


def test_the_fixtures_are_described(project: Project) -> None:
    declared = "shop_db = pgdbm_database('users', 'orders', scope='module')\nevery_db = pgdbm_database()\n"
    declared += (
        "two_db = pgdbm_db('users', 'orders')\nany_db = pgdbm_db()\nown_db = pgdbm_db('own', migrations='sql')\n"
    )
    project.write("test_it.py", f"from pytest_pgdbm import pgdbm_database, pgdbm_db\n{declared}def test(): pass")
    result = project.run("--fixtures")
    for name, text in [
        ("pgdbm_server *scope*", "*The run's Postgres server: kind, version, host, port, user, database, url;*"),
        (
            "users_db -- *",
            "*Database of 'users' on a freshly migrated schema of this function. Migrations: migrations/users or as*",
        ),
        ("any_db -- *", "*Database of the only service on a freshly migrated schema of this function."),
        ("own_db -- *", "*Database of 'own' on a freshly migrated schema of this function. Migrations: sql."),
        ("two_db -- *", "*'users' and 'orders' *. Migrations: migrations/users, migrations/orders or as declared *."),
        ("shop_db *scope*", "*Whole database of 'users' and 'orders', freshly migrated for this module.*"),
        ("every_db -- *", "*Whole database of all services, freshly migrated for this function.*"),
    ]:
        result.stdout.fnmatch_lines([name, text])


def test_the_header_tells_the_server_and_what_was_changed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDBM_SEARCH_PATH", "pg_catalog, public")
    project.write("test_it.py", "def test(): pass")
    result = project.run()
    result.stdout.fnmatch_lines(
        [
            "pgdbm: server at the URL given by --pgdbm-url; pgdbm 0.*; search_path pg_catalog, public",
            "pgdbm: url=postgresql://pgdbm:*@*, search-path=pg_catalog, public (from PGDBM_SEARCH_PATH)",
        ]
    )


@pytest.mark.parametrize(
    ("pgdbm", "told"),
    [("0.4.0", "of the server (pgdbm 0.4 sets none)"), ("0.5.0", "pg_catalog (by pgdbm)")],
)
def test_the_header_names_the_search_path_that_pgdbm_sets(
    project: Project, monkeypatch: pytest.MonkeyPatch, pgdbm: str, told: str
) -> None:
    monkeypatch.setattr(report, "version", lambda package: pgdbm)
    project.run(test="def test(): pass").stdout.fnmatch_lines([f"pgdbm: * pgdbm {pgdbm}; search_path {told}"])


def test_with_v_the_end_tells_the_version_that_the_header_could_not_know(project: Project, query: Query) -> None:
    (row,) = query("show server_version")
    told = f"the server (--pgdbm-url) is PostgreSQL {row[0].split()[0]}"
    test = "async def test_it(users_db): pass"
    assert project.run("-v", test=test).outlines.count(told) == 1
    assert project.run_apart("-v", "-n", "2", "--dist=each", test=test).outlines.count(told) == 1
    assert told not in project.run(test=test).outlines
    assert told not in project.run("-v", test="def test_it(): pass").outlines
    project.url = None
    own = project.run("-v", "--pgdbm-server=embedded", test=test)
    own.stdout.no_fnmatch_line("the server (*")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--pgdbm-server=embeded"], "*--pgdbm-server: 'embeded' is not known; did you mean 'embedded'?*"),
        (["--pgdbm-url=postgresql://u:hunter2@h:port/d"], "*has a port that is not a number*"),
        (["--pgdbm-role=root"], "*--pgdbm-role: 'root' is not known. Valid are user, superuser*"),
        (["--pgdbm-server=url"], "*needs a URL; give --pgdbm-url, PGDBM_URL or the ini setting pgdbm_url*"),
    ],
)
def test_a_wrong_option_is_a_usage_error_before_collection(
    own_server_project: Project, args: list[str], message: str
) -> None:
    result = own_server_project.run(*args, test="raise RuntimeError('collected')")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    assert "hunter2" not in result.stdout.str() + result.stderr.str()
    result.stdout.no_fnmatch_line("*collected*")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("reset='x'", "*@pytest.mark.pgdbm has no reset=; it has: seed=, search_path=*"),
        ("seed=['a.sql']", "*takes the seeds by service: seed={'users': *"),
        ("search_path=3", "*::test_it: @pytest.mark.pgdbm(search_path=*): takes a text such as 'pg_catalog, public'*"),
        ("search_path='$servce, public'", "*(search_path=*): '$servce' cannot stand in the search path; give plain *"),
        (
            "search_path='public; drop'",
            "*(search_path=*): 'public; drop' cannot stand in the search path; give plain *",
        ),
        ("search_path='pg_catalog public'", "*(search_path=*): 'pg_catalog public' cannot stand in the search path*"),
        ("search_path=''", "*(search_path=*): '' cannot stand in the search path; give plain schema names and*"),
        ("search_path='none, public'", "*(search_path=*): 'none' stands alone; leave it out, or leave out the other*"),
        ("reuse=True", "*@pytest.mark.pgdbm(reuse=*) takes 'on' or 'off'*"),
    ],
)
def test_a_wrong_marker_is_a_usage_error(project: Project, marker: str, message: str) -> None:
    result = project.run(test=f"import pytest\n@pytest.mark.pgdbm({marker})\nasync def test_it(users_db): pass\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_service_in_the_ini_without_a_folder_is_a_usage_error(project: Project) -> None:
    project.write("pytest.ini", (project.path / "pytest.ini").read_text() + "pgdbm_services = billing = nowhere\n")
    result = project.run(test="def test(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*billing = nowhere*"])


def test_an_unmarked_asynchronous_test_gets_a_hint(project: Project) -> None:
    project.write("pytest.ini", (project.path / "pytest.ini").read_text().replace("= auto", "= strict"))
    result = project.run(test="async def test_it(users_db): pass")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["this asynchronous test asks for 'pgdbm_db', and no plugin runs it: mark it with @pytest.mark.asyncio*"]
    )


def test_an_error_in_a_test_shows_the_tests_line_and_not_the_plugins(project: Project) -> None:
    calls = ["pgdbm_db('user')", "pgdbm_db('users', seed=5)", "pgdbm_db(5)", "pgdbm_database(5)"]
    tests = [f"async def test_{at}(pgdbm_db, pgdbm_database):\n    await {call}\n" for at, call in enumerate(calls)]
    result = project.run(test="\n".join(tests))
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines([f">*await {call}" for call in calls])
    result.stdout.fnmatch_lines(["E*unknown service 'user'; did you mean 'users'?", "E*seed=5 is not a seed; *"])
    result.stdout.no_fnmatch_line("*pytest_pgdbm/*")


def test_a_manager_is_of_no_use_after_its_test(project: Project) -> None:
    project.run(
        test="""
        import pytest
        from pytest_pgdbm import LeaseEnded

        kept = []

        async def test_keeps(users_db):
            kept.append(users_db)

        async def test_uses():
            with pytest.raises(LeaseEnded, match="belonged to test_it.py::test_keeps, which has ended"):
                await kept[0].fetch_value("select 1")
        """
    ).assert_outcomes(passed=2)


def test_the_plugin_can_be_switched_off(project: Project) -> None:
    project.url = None
    project.write("conftest.py", "")
    project.run("-p", "no:pgdbm", test="def test(): pass").assert_outcomes(passed=1)


@pytest.mark.skipif(shutil.which("psql") is None, reason="needs psql, a client of PostgreSQL")
def test_a_breakpoint_shows_how_to_look_into_the_database(own_server_project: Project) -> None:
    own_server_project.write("test_it.py", "async def test_it(users_db):\n    breakpoint()\n")
    child = own_server_project.pytester.spawn_pytest("")
    child.expect(r"pgdbm: (PGPASSFILE=\S+ PGOPTIONS='-c search_path=\S+' psql -h 127.0.0.1 -p \d+ -U pgdbm pgdbm_\w+)")
    command = child.match.group(1).decode()
    child.expect("(Pdb)")
    shown = subprocess.run(
        f"{command} -Atc 'select count(*) from users'", shell=True, capture_output=True, text=True, check=False
    )
    assert shown.stdout.strip() == "0", shown.stderr
    child.sendline("c")
    child.expect("1 passed")
    child.wait()


def test_with_pdb_the_pool_has_no_time_limits(project: Project) -> None:
    project.run(
        "--pdb",
        test="""
        async def test_it(users_db):
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"):
                assert await users_db.fetch_value(f"show {name}") == "0"
        """,
    ).assert_outcomes(passed=1)
