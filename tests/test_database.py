"""Isolation `database`: services under their real names, in a database that is a test's alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator

import asyncpg
import psutil
import pytest
from conftest import INI, Project
from workshop import Workshop

USERS = """
create table {{tables.users}} (id serial primary key, email text not null unique);
create schema audit;
create table audit.log (what text not null);
create function users.note() returns trigger language plpgsql as
    $$ begin insert into audit.log values (new.email); return new; end $$;
create trigger note after insert on users.users for each row execute function users.note();
insert into users.users (email) values ('root@example.org');
"""

ORDERS = """
create table {{tables.orders}} (id serial primary key, user_id int not null references users.users (id));
"""

CONFTEST = """
import json
import pytest
from pytest_pgdbm import pgdbm_database, pgdbm_db

shop_db = pgdbm_database("users", "orders")
users_db = pgdbm_db("users")
orders_db = pgdbm_db("orders")
databases = []

@pytest.fixture
def seen():
    return databases.append

@pytest.fixture(autouse=True, scope="session")
def told():
    yield
    with open("databases.json", "w") as file:
        json.dump(databases, file)
"""

DATABASES = """
select datname, pg_catalog.shobj_description(oid, 'pg_database') as comment
from pg_catalog.pg_database where datname ~ '^pgdbm_'
"""


def with_hard_coded_names(project: Project) -> Project:
    project.write("migrations/users/001_users.sql", USERS)
    project.write("migrations/orders/001_orders.sql", ORDERS)
    project.write("conftest.py", CONFTEST)
    return project


@pytest.fixture
def shop(project: Project) -> Project:
    """Two services whose migrations name schemas themselves, at a URL."""
    return with_hard_coded_names(project)


@pytest.fixture
def own_shop(own_server_project: Project) -> Project:
    """The same on a server of its own."""
    return with_hard_coded_names(own_server_project)


@pytest.fixture
def made_here(query: Callable[..., list[asyncpg.Record]]) -> Callable[[], list[str]]:
    """Tells which databases inner runs have left on the outer server."""
    before = {row["datname"] for row in query(DATABASES)}

    def run() -> list[str]:
        left = {row["datname"] for row in query(DATABASES) if _made_by_inner_run(row["comment"])}
        return sorted(left - before)

    return run


def _made_by_inner_run(comment: str | None) -> bool:
    """Other workers of the outer run have the same server: what they make is theirs while they live."""
    process = re.search(r", process (\d+) on ", comment or "")
    return process is not None and (int(process[1]) == os.getpid() or not psutil.pid_exists(int(process[1])))


def seen_by(project: Project) -> list[str]:
    names: list[str] = json.loads((project.path / "databases.json").read_text())
    return names


WHOLE = """
import asyncpg
import pytest
from pgdbm import AsyncDatabaseManager, AsyncMigrationManager

async def test_real_names(shop_db, pgdbm_url):
    assert shop_db.services == ("users", "orders")
    assert [shop_db[name].schema for name in shop_db] == ["users", "orders"]
    assert shop_db["users"].sibling("orders") is shop_db["orders"]
    assert shop_db.url == shop_db["orders"].dsn != pgdbm_url
    assert isinstance(shop_db.pool, asyncpg.Pool)
    password = shop_db.url.partition("@")[0].rpartition(":")[2]
    assert password in shop_db.url and password not in repr(shop_db.url) + repr(shop_db)

@pytest.mark.parametrize("number", range(20))
async def test_the_application_makes_its_own_managers(shop_db, number, seen):
    seen(shop_db.url.rpartition("/")[2])
    users = AsyncDatabaseManager(pool=shop_db.pool, schema="users")
    orders = AsyncDatabaseManager(pool=shop_db.pool, schema="orders")
    user = await users.fetch_value("insert into {{tables.users}} (email) values ('a@example.org') returning id")
    assert user == 2
    assert await orders.fetch_value("select count(*) from {{tables.users.users}}") == 2
    await orders.execute("insert into {{tables.orders}} (user_id) values ($1)", user)
    assert [row["what"] for row in await users.fetch_all("select what from audit.log")] == [
        "root@example.org", "a@example.org"
    ]

async def test_migrations_are_applied_already(shop_db):
    manager = AsyncMigrationManager(shop_db["users"], migrations_path="migrations/users", module_name="users")
    assert (await manager.apply_pending_migrations())["status"] == "up_to_date"

async def test_by_url(shop_db):
    connection = await asyncpg.connect(shop_db.url)
    assert await connection.fetchval("select count(*) from users.users") == 1
    assert await connection.fetchval("select current_user = session_user")
    await connection.close()

async def test_by_the_factory(pgdbm_database, shop_db, pgdbm_db):
    database = await pgdbm_database("users", "orders")
    assert database["users"] is shop_db["users"]
    other = await pgdbm_database("users", "orders", fresh=True)
    assert other.url != shop_db.url
    await other["users"].execute("delete from {{tables.users}}")
    assert await database["users"].fetch_value("select count(*) from {{tables.users}}") == 1
    every = await pgdbm_database()
    assert every["orders"] is shop_db["orders"]

def test_without_a_loop(pgdbm_database):
    database = pgdbm_database("orders").get()
    assert database.services == ("users", "orders")
    assert "orders" in database and "payments" not in database
"""


def test_a_whole_database_at_a_url(shop: Project, made_here: Callable[[], list[str]]) -> None:
    shop.run(test=WHOLE).assert_outcomes(passed=25)
    assert len(set(seen_by(shop))) <= 3
    assert made_here() == []


def test_and_on_a_server_of_its_own(own_shop: Project) -> None:
    own_shop.run(test=WHOLE).assert_outcomes(passed=25)
    assert len(set(seen_by(own_shop))) <= 3


def test_with_two_workers(shop: Project, made_here: Callable[[], list[str]]) -> None:
    shop.run("-n2", test=WHOLE).assert_outcomes(passed=25)
    assert made_here() == []


SINGLY = """
import pytest
from pgdbm import AsyncDatabaseManager

async def test_by_fixtures(users_db, orders_db):
    assert (users_db.schema, orders_db.schema) == ("users", "orders")
    assert users_db.dsn == orders_db.dsn
    plain = AsyncDatabaseManager(pool=orders_db.pool, schema="orders")
    assert await plain.fetch_value("select count(*) from {{tables.users.users}}") == 1

async def test_by_name(pgdbm_db):
    orders = await pgdbm_db("orders")
    users = await pgdbm_db("users")
    assert users.dsn == orders.dsn
    assert users.sibling("orders") is orders
"""


@pytest.mark.parametrize("how", ["option", "ini", "environment", "marker"])
def test_all_services_of_a_test_are_in_one_database(
    how: str, shop: Project, monkeypatch: pytest.MonkeyPatch, made_here: Callable[[], list[str]]
) -> None:
    shop.write("migrations/alone/001.sql", "create table {{tables.t}} (id int);")
    args, test = [], SINGLY
    if how == "option":
        args = ["--pgdbm-isolation=database"]
    elif how == "environment":
        monkeypatch.setenv("PGDBM_ISOLATION", "database")
    elif how == "ini":
        shop.write("pytest.ini", INI + "pgdbm_isolation = database\n")
    else:
        test += '\npytestmark = pytest.mark.pgdbm(isolation="database")\n'
    shop.run(*args, test=test).assert_outcomes(passed=2)
    assert made_here() == []


def test_the_marker_chooses_schemas_again(project: Project) -> None:
    project.run(
        "--pgdbm-isolation=database",
        test="""
        import pytest

        async def test_database(users_db):
            assert users_db.schema == "users"

        @pytest.mark.pgdbm(isolation="schema")
        async def test_schema(users_db, pgdbm_url):
            assert users_db.schema.startswith("pgdbm_")
            assert users_db.dsn == pgdbm_url
        """,
    ).assert_outcomes(passed=2)


CHANGES = [
    "create schema more",
    "alter table users.users add nickname text",
    "create table audit.more (id int)",
    "create extension citext",
    "do $$ begin execute format('alter database %I set work_mem = 12345', current_database()); end $$",
    "comment on table audit.log is 'changed'",
    "create publication everything for all tables",
]


@pytest.mark.parametrize("superuser", [False, True], ids=["url", "superuser"])
def test_what_a_test_changes_anywhere_in_the_database_no_other_test_sees(
    superuser: bool, shop: Project, own_shop: Project
) -> None:
    changes = [*CHANGES]
    if superuser:
        changes += [
            "create function public.stop() returns event_trigger language plpgsql as"
            " $$ begin raise exception 'no'; end $$; create event trigger stop on ddl_command_start"
            " execute function public.stop()"
        ]
    else:
        changes.remove("create publication everything for all tables")
    test = f"""
        import pytest

        STATE = '''
            select array_agg(n.nspname::text order by 1),
                (select array_agg(e.extname::text) from pg_extension e),
                (select count(*) from pg_class c where c.relnamespace >= 16384),
                (select count(*) from pg_event_trigger), (select count(*) from pg_publication),
                (select count(*) from pg_attribute where attrelid = 'users.users'::regclass),
                obj_description('audit.log'::regclass), current_setting('work_mem')
            from pg_namespace n where nspname !~ '^pg_(toast_)?temp'
        '''
        first = []

        @pytest.mark.parametrize("change", {changes!r})
        async def test_it(shop_db, change, seen):
            seen(shop_db.url.rpartition("/")[2])
            async with shop_db.pool.acquire() as connection:
                state = tuple(await connection.fetchrow(STATE))
                assert state == (first[0] if first else state)
                first.append(state)
                await connection.execute(change)
                assert await connection.fetchval("select count(*) from users.users") == 1
    """
    project, args = (own_shop, ["--pgdbm-role=superuser"]) if superuser else (shop, [])
    project.run(*args, test=test).assert_outcomes(passed=len(changes))
    assert len(set(seen_by(own_shop))) == len(changes)


LEAVES = """
import asyncio
import contextlib
import asyncpg
import pytest

in_session = pytest.mark.asyncio(loop_scope="session")
kept = []

@in_session
async def test_leaves(shop_db):
    connection = await asyncpg.connect(shop_db.url, server_settings={"application_name": "left"})
    await connection.execute("listen gossip; select pg_advisory_lock(4711)")
    kept.append(connection)

@in_session
async def test_next(shop_db):
    await shop_db["users"].execute("select pg_advisory_lock(4711)")
    await shop_db["users"].execute("notify gossip")

@in_session
async def test_it_has_ended():
    async with asyncio.timeout(10) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
        while not kept[0].is_closed():
            await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("reuse", ["on", "off"])
def test_a_connection_that_a_test_leaves_open_is_ended_and_named(shop: Project, reuse: str) -> None:
    result = shop.run("-W", "default", f"--pgdbm-reuse={reuse}", test=LEAVES)
    result.assert_outcomes(passed=3, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_leaves",
            "*PgdbmLeakWarning: test_it.py::test_leaves ended, and a connection to its database was still open: server"
            " process *, 'left', idle, last query 'listen gossip; select pg_advisory_lock(4711)'. It was cut off; close"
            " it in the test",
        ]
    )


def test_a_connection_of_the_pool_that_is_out_is_cut_off_and_named(shop: Project) -> None:
    result = shop.run(
        "-W",
        "default",
        test="""
        import pytest

        pytestmark = pytest.mark.asyncio(loop_scope="session")
        kept = []

        async def test_leaves(shop_db):
            kept.append(await shop_db.pool.acquire())

        @pytest.mark.parametrize("number", range(5))
        async def test_next(shop_db, number):
            assert await shop_db["users"].fetch_value("select count(*) from {{tables.users}}") == 1
        """,
    )
    result.assert_outcomes(passed=6, warnings=1)
    result.stdout.fnmatch_lines(["*test_leaves ended without giving back a connection that it took at *test_it.py:*"])


@pytest.fixture
def no_maker(workshop: Workshop) -> Iterator[str]:
    """A role that can make schemas in the test's database, and no databases."""
    role = f"no_maker_{workshop.database}"

    async def execute(statement: str) -> None:
        async with workshop.superuser() as connection:
            await connection.execute(statement)

    asyncio.run(
        execute(f"create role {role} login password 's'; grant create on database {workshop.database} to {role}")
    )
    yield role
    asyncio.run(execute(f"drop owned by {role}; drop role {role}"))


def test_a_role_that_may_not_make_databases_is_told_what_mends_it(
    shop: Project, no_maker: str, made_here: Callable[[], list[str]]
) -> None:
    shop.url = f"postgresql://{no_maker}:s@{(shop.url or '').rpartition('@')[2]}"
    result = shop.run(test="def test_it(shop_db): ...\ndef test_schema(pgdbm_url): ...")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "a database of its own could not be made for a test (isolation 'database')",
            f'  role "{no_maker}" may not create databases at *',
            f'  to mend it: have a superuser run ALTER ROLE "{no_maker}" CREATEDB;'
            " or leave the URL out, for a server of the run's own",
        ]
    )
    assert made_here() == []


SCOPES = """
import pytest
from pytest_pgdbm import pgdbm_database

wide_db = pgdbm_database("orders", scope="{scope}")

async def test_one(wide_db):
    await wide_db["users"].execute("insert into {{{{tables.users}}}} (email) values ('a')")

async def test_two(wide_db, shop_db, pgdbm_database):
    assert wide_db.services == ("users", "orders")
    assert await wide_db["users"].fetch_value("select count(*) from {{{{tables.users}}}}") == 2
    assert await shop_db["users"].fetch_value("select count(*) from {{{{tables.users}}}}") == 1
    assert (await pgdbm_database("orders"))["users"] is wide_db["users"]
    alone = await pgdbm_database("users")
    assert alone.services == ("users",)
"""


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_database_can_be_shared_by_wider_scopes(
    scope: str, shop: Project, made_here: Callable[[], list[str]]
) -> None:
    test = SCOPES.format(scope=scope)
    if scope == "class":
        head, _, tests = test.partition("async def")
        tests = "async def" + tests.replace("(wide_db", "(self, wide_db")
        test = head + "class TestIt:\n" + "".join(f"    {line}\n" for line in tests.splitlines())
    shop.run(test=test).assert_outcomes(passed=2)
    assert made_here() == []


def test_switched_off_each_test_has_a_database_of_its_own(shop: Project, made_here: Callable[[], list[str]]) -> None:
    test = """
        import pytest

        @pytest.mark.asyncio(loop_scope="session")
        @pytest.mark.parametrize("number", range(30))
        async def test_it(shop_db, number, seen):
            seen(shop_db.url.rpartition("/")[2])
            await shop_db["users"].execute("insert into {{tables.users}} (email) values ('a')")
    """
    shop.run("--pgdbm-reuse=off", test=test).assert_outcomes(passed=30)
    assert len(set(seen_by(shop))) == 30
    assert made_here() == []


def test_databases_of_many_contents_do_not_pile_up(shop: Project, made_here: Callable[[], list[str]]) -> None:
    test = "".join(
        f"""
import pytest

@pytest.mark.pgdbm(seed={{"users": {{"users": [{{"email": "{number}@example.org"}}]}}}})
async def test_{number}(shop_db):
    users = shop_db["users"]
    assert await users.fetch_value("select max(email) from {{{{tables.users}}}} where id > 1") == "{number}@example.org"
    run = shop_db.url.rpartition("_main_")[0].rpartition("_")[2]
    assert await users.fetch_value(KEPT, f"of run {{run}},") <= 9
"""
        for number in range(14)
    )
    kept = "KEPT = \"select count(*) from pg_database where shobj_description(oid, 'pg_database') ~ $1\"\n"
    shop.run(test=kept + test).assert_outcomes(passed=14)
    assert made_here() == []


def test_an_application_holds_the_pool_for_as_long_as_it_lives(shop: Project) -> None:
    shop.run(
        test="""
        import contextlib

        import pytest
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from pgdbm import AsyncDatabaseManager, AsyncMigrationManager

        def make_app(pool):
            @contextlib.asynccontextmanager
            async def lifespan(app):
                app.state.users = AsyncDatabaseManager(pool=pool, schema="users")
                app.state.orders = AsyncDatabaseManager(pool=pool, schema="orders")
                for name in ("users", "orders"):
                    await AsyncMigrationManager(
                        getattr(app.state, name), migrations_path=f"migrations/{name}", module_name=name
                    ).apply_pending_migrations()
                yield
                await pool.close()

            app = FastAPI(lifespan=lifespan)

            @app.post("/orders")
            async def order(email: str):
                user = await app.state.users.fetch_value(
                    "insert into {{tables.users}} (email) values ($1) returning id", email
                )
                return await app.state.orders.fetch_value(
                    "insert into {{tables.orders}} (user_id) values ($1) returning id", user
                )

            @app.get("/users")
            async def users():
                return await app.state.orders.fetch_value("select count(*) from {{tables.users.users}}")

            return app

        @pytest.fixture
        def client(shop_db):
            with TestClient(make_app(shop_db.pool)) as client:
                yield client

        @pytest.mark.parametrize("number", range(8))
        def test_orders(client, number):
            assert client.post("/orders?email=a@example.org").json() == 1
            assert client.get("/users").json() == 2
        """
    ).assert_outcomes(passed=8)


INTERRUPTED = """
import os
import signal

async def test_it(shop_db):
    await shop_db["users"].execute("insert into {{tables.users}} (email) values ('a')")
    os.kill(os.getpid(), signal.SIGINT)
    await shop_db["users"].execute("select pg_sleep(60)")
"""


def test_an_interrupted_run_leaves_no_database(shop: Project, made_here: Callable[[], list[str]]) -> None:
    result = shop.run_apart(test=INTERRUPTED)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert made_here() == []


def test_nor_one_that_is_interrupted_while_migrations_run(shop: Project, made_here: Callable[[], list[str]]) -> None:
    shop.write("migrations/users/002_slow.sql", "select pg_sleep(60);")
    result = shop.run_apart(
        test="""
        import os
        import signal
        import threading

        def test_it(pgdbm_database, pgdbm_url):
            threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
            pgdbm_database("users").get()
        """
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert made_here() == []


def test_a_migration_that_fails_is_told_and_leaves_no_database(
    shop: Project, made_here: Callable[[], list[str]]
) -> None:
    shop.write("migrations/orders/002_more.sql", "create table orders.more (\n    id integr\n);")
    result = shop.run(test="def test_it(shop_db): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "a migration of service 'orders' failed",
            "  */migrations/orders/002_more.sql, line 2",
            '  the server says: type "integr" does not exist',
        ]
    )
    assert made_here() == []


def test_services_of_odd_names_have_plain_schemas(project: Project) -> None:
    for name in ("Order-Items", "1st", "public", "_private", "pg_lag"):
        project.write(
            f"migrations/{name}/001.sql", "create table {{tables.t}} (id int); insert into {{tables.t}} values (1);"
        )
    project.run(
        test="""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        async def test_it(pgdbm_database, number):
            database = await pgdbm_database()
            assert {name: database[name].schema for name in database if name not in ("users", "orders")} == {
                "Order-Items": "order_items", "1st": "_1st", "public": "public", "_private": "_private",
                "pg_lag": "_pg_lag",
            }
            for name in ("Order-Items", "public", "1st"):
                await database[name].execute("insert into {{tables.t}} values (2)")
                assert await database[name].fetch_value("select count(*) from {{tables.t}}") == 2
            assert await database["users"].fetch_value("select count(*) from {{tables.order_items.t}}") == 2
        """
    ).assert_outcomes(passed=4)


def test_two_services_of_one_schema_are_refused(project: Project) -> None:
    for name in ("order-items", "order_items"):
        project.write(f"migrations/{name}/001.sql", "create table {{tables.t}} (id int);")
    result = project.run(test="def test_it(pgdbm_database):\n    pgdbm_database().get()")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*ConfigError: services 'order-items' and 'order_items' cannot be in one database:"
            " both would be in the schema 'order_items'; give one of them another name"
        ]
    )


def test_what_is_not_in_the_database_is_said_with_what_is(shop: Project) -> None:
    shop.write("migrations/payments/001.sql", "create table {{tables.t}} (id int);")
    result = shop.run(
        test="""
        def test_member(shop_db):
            shop_db["payments"]

        def test_unknown(pgdbm_database):
            pgdbm_database("order")
        """
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*UnknownService: unknown service 'payments'*",
            "*known services: orders, users",
            "*it is not in this database; to have it there: pgdbm_database(…, 'payments')",
            "*UnknownService: unknown service 'order'; did you mean 'orders'?",
        ]
    )


@pytest.mark.parametrize("given", ['"users", ""', "7", 'scope="tests"'])
def test_wrong_arguments_are_told_where_they_stand(shop: Project, given: str) -> None:
    shop.write("conftest.py", f"from pytest_pgdbm import pgdbm_database\nshop_db = pgdbm_database({given})\n")
    result = shop.run(test="def test_it(): ...")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ConfigError: *"])


def test_a_wrong_isolation_is_told(shop: Project) -> None:
    result = shop.run(test="import pytest\n@pytest.mark.pgdbm(isolation='databse')\ndef test_it(): ...")
    result.stderr.fnmatch_lines(
        ["ERROR: test_it.py::test_it: @pytest.mark.pgdbm(isolation=…) takes 'schema' or 'database'"]
    )


def test_it_sorts_as_the_database_at_the_url_does(shop: Project, query: Callable[..., list[asyncpg.Record]]) -> None:
    own = (shop.url or "").rpartition("/")[2] + "_sorted"
    query(f"create database {own} template template0 lc_collate 'C.UTF-8' lc_ctype 'C' encoding 'UTF8'")
    try:
        shop.url = (shop.url or "").rpartition("/")[0] + "/" + own
        shop.run(
            test="""
            async def test_it(shop_db):
                async with shop_db.pool.acquire() as connection:
                    row = await connection.fetchrow(
                        "select datcollate, datctype from pg_database where datname = current_database()"
                    )
                    assert tuple(row) == ("C.UTF-8", "C")
            """
        ).assert_outcomes(passed=1)
    finally:
        query(f"drop database {own} with (force)")


def test_a_service_may_lie_in_public_alone(project: Project) -> None:
    project.write("migrations/public/001.sql", "create table {{tables.t}} (id int);")
    project.run(
        test="""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        async def test_it(pgdbm_database, number):
            database = await pgdbm_database("public")
            await database["public"].execute("insert into {{tables.t}} values (1)")
            assert await database["public"].fetch_value("select count(*) from public.t") == 1
        """
    ).assert_outcomes(passed=4)


MANY_AT_ONCE = """
import asyncio
import pytest

@pytest.mark.asyncio(loop_scope="{scope}")
@pytest.mark.parametrize("number", range(12))
async def test_it(shop_db, number):
    async def one(number):
        async with shop_db.pool.acquire() as connection:
            await connection.execute("insert into users.users (email) values ($1)", str(number))
            await asyncio.sleep(0.01)
    await asyncio.gather(*(one(number) for number in range(8)))
    others = "select count(*) from pg_stat_activity where datname <> current_database() and application_name like $1"
    run = shop_db.url.rpartition("_main_")[0].rpartition("_")[2]
    assert await shop_db["users"].fetch_value("select count(*) from {{{{tables.users}}}}") == 9
    assert await shop_db["users"].fetch_value(others, f"pgdbm {{run}} % pool") <= 2 * 8
"""


@pytest.mark.parametrize("scope", ["session", "function"])
def test_tests_with_many_connections_leave_few(scope: str, shop: Project) -> None:
    shop.run(test=MANY_AT_ONCE.format(scope=scope)).assert_outcomes(passed=12)


def test_on_a_server_of_its_own_with_two_workers_and_superusers(own_shop: Project) -> None:
    own_shop.run("-n2", "--pgdbm-role=superuser", test=WHOLE).assert_outcomes(passed=25)


def test_the_debugger_tells_how_to_look_into_the_database(shop: Project) -> None:
    result = shop.run("--trace", "-s", test="async def test_it(shop_db):\n    assert shop_db.services")
    result.stdout.fnmatch_lines(
        ["pgdbm: PGOPTIONS='-c search_path=users,orders,public' psql 'postgresql://*:*/pgdbm_*_main_1'"]
    )


def test_nothing_is_known_of_a_database_by_the_managers_of_schemas(shop: Project) -> None:
    shop.write("migrations/plain/001.sql", "create table {{tables.t}} (id int);")
    shop.write("migrations/users/001_users.sql", "create table {{tables.users}} (id int);")
    shop.write("migrations/orders/001_orders.sql", "create table {{tables.orders}} (id int);")
    shop.run(
        test="""
        import pytest
        from pgdbm.errors import QueryError

        async def test_it(shop_db, pgdbm_db):
            plain = await pgdbm_db("plain")
            assert plain.dsn != shop_db.url
            with pytest.raises(QueryError, match='relation "users.users" does not exist'):
                await plain.fetch_value("select count(*) from {{tables.users.users}}")
            users = await pgdbm_db("users")
            await users.execute("insert into {{tables.users}} values (1)")
            assert await plain.fetch_value("select count(*) from {{tables.users.users}}") == 1
            assert await shop_db["orders"].fetch_value("select count(*) from {{tables.users.users}}") == 0
        """
    ).assert_outcomes(passed=1)
