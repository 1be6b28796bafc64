"""Each project in conftest_examples is run, in a copy and in a process of its own."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine
import pytest
from conftest import QUICK

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "conftest_examples"
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())
OWN_SCHEMAS = "select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"
OBJECTS = """
    select relname from pg_class where relnamespace = 'public'::regnamespace
    union all select proname from pg_proc p where pronamespace = 'public'::regnamespace
        and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
"""

Query = Callable[..., list[Any]]


def run(pytester: pytest.Pytester, name: str, *args: str, url: str | None = None) -> pytest.RunResult:
    """Runs a copy of the example; the URL goes by the environment, since commands are printed."""
    folder = pytester.path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if url is not None:
            patch.setenv("PGDBM_URL", url)
        return pytester.run(sys.executable, "-m", "pytest", *QUICK, *args, timeout=180)


def projects_tests(name: str) -> int:
    """At least how many tests the example has."""
    return sum(len(re.findall(r"^(?:async )?def test_", text, re.MULTILINE)) for text in texts(name, "test_*.py"))


def texts(name: str, pattern: str) -> Iterator[str]:
    for path in sorted((EXAMPLES / name).rglob(pattern)):
        yield path.read_text(encoding="utf-8")


def assert_all_passed(result: pytest.RunResult, name: str) -> None:
    assert result.ret == pytest.ExitCode.OK
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= projects_tests(name)


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("quickstart", ["citext", "pg_trgm"]),
        ("fastapi_app", ["citext"]),
        ("existing_server", ["citext"]),
        ("monitoring", ["hstore"]),
    ],
)
def test_an_example_passes_at_a_url_and_leaves_nothing_but_its_extensions(
    name: str, extension: list[str], pytester: pytest.Pytester, database_url: str, query: Query
) -> None:
    assert_all_passed(run(pytester, name, url=database_url), name)
    assert_only_extensions(query, extension)


def test_shared_pool_passes_on_two_workers_and_leaves_nothing_but_its_extension(
    pytester: pytest.Pytester, database_url: str, query: Query
) -> None:
    assert_all_passed(run(pytester, "shared_pool", "-n", "2", url=database_url), "shared_pool")
    assert_only_extensions(query, ["citext"])


@pytest.mark.parametrize("name", ["quickstart", "fastapi_app", "monitoring"])
def test_an_example_passes_in_databases_of_its_own_too(name: str, pytester: pytest.Pytester) -> None:
    assert_all_passed(run(pytester, name, "--pgdbm-isolation=database"), name)


def assert_only_extensions(query: Query, extensions: list[str]) -> None:
    assert [row["nspname"] for row in query(OWN_SCHEMAS)] == ["public"]
    assert query(OBJECTS) == []
    found = query("select extname from pg_extension where extname <> 'plpgsql' order by 1")
    assert [row["extname"] for row in found] == extensions


def test_quickstart_passes_on_a_server_of_its_own(pytester: pytest.Pytester) -> None:
    assert_all_passed(run(pytester, "quickstart"), "quickstart")


def test_existing_server_refuses_to_run_without_a_url(pytester: pytest.Pytester) -> None:
    result = run(pytester, "existing_server")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: server=url (from pyproject.toml) needs a URL; *")


def test_the_pipeline_of_existing_server_is_the_one_in_the_docs() -> None:
    def pipeline(path: Path) -> str:
        (block,) = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        return re.sub(r"^# .*\n", "", block)

    told = pipeline(EXAMPLES / "existing_server" / "README.md")
    assert told == pipeline(ROOT / "docs" / "how-to" / "run-in-ci.md")
    password, database, port = (
        re.search(rf"{word}:? *(\S+)", told)[1] for word in ("POSTGRES_PASSWORD", "POSTGRES_DB", "- 5432")
    )
    assert f"PGDBM_URL: postgresql://postgres:{password}@127.0.0.1:{port.lstrip(':')}/{database}\n" in told


@pytest.mark.container
def test_container_passes_in_a_container(pytester: pytest.Pytester) -> None:
    with engine.opened():
        result = run(pytester, "container", f"--pgdbm-image={engine.IMAGE}")
    assert_all_passed(result, "container")


def test_the_start_up_of_shared_pool_works_in_production_too(
    database_url: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "shared_pool")
    from shop.databases import open_databases

    async def twice() -> list[str]:
        async with open_databases(database_url):
            pass
        async with open_databases(database_url) as databases:
            return [
                await each.fetch_value("select count(*) from {{tables.schema_migrations}}")
                for each in databases.values()
            ]

    assert asyncio.run(twice()) == [2, 2, 1]
    schemas = {row["nspname"] for row in query(OWN_SCHEMAS)}
    assert schemas == {"public", "users", "orders", "payments"}


def test_the_start_up_of_fastapi_app_works_in_production_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from httpx import ASGITransport, AsyncClient

    monkeypatch.syspath_prepend(EXAMPLES / "fastapi_app")
    monkeypatch.setenv("DATABASE_URL", database_url)
    from store.app import create_app

    async def sign_up() -> list[str]:
        app = create_app()
        async with app.router.lifespan_context(app):
            assert {name: report["status"] for name, report in app.state.migrated.items()} == {
                "users": "success",
                "orders": "success",
            }
            async with AsyncClient(transport=ASGITransport(app), base_url="http://store") as client:
                await client.post("/users", params={"email": "ada@example.org"})
                return (await client.get("/users")).json()

    assert asyncio.run(sign_up()) == ["guest@example.org", "ada@example.org"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_complete(name: str) -> None:
    folder = EXAMPLES / name
    (ini,) = [path for path in (folder / "pytest.ini", folder / "pyproject.toml") if path.exists()]
    settings = ini.read_text(encoding="utf-8")
    assert "asyncio_default_fixture_loop_scope" in settings
    assert re.search(r"filterwarnings\s*=\s*(\[\")?error", settings)
    assert (folder / "conftest.py").exists()
    assert (folder / "README.md").exists()
    sql = "".join(texts(name, "migrations/*/*.sql"))
    for part in ("CREATE EXTENSION", "TRIGGER", r"REFERENCES \{\{tables\.\w+\.\w+\}\}"):
        assert re.search(part, sql), f"{name}: no migration with {part}"
    assert "INSERT INTO" in re.sub(r"\$\$.*?\$\$", "", sql, flags=re.DOTALL) or "seed=" in "".join(
        texts(name, "conftest.py")
    )
    assert f"[{name}](conftest_examples/{name})" in (ROOT / "README.md").read_text(encoding="utf-8")
