"""Services that need no declaration: the nearest `migrations` folder, and lines of the ini file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.services.discovery import Discovered, discover, from_ini
from pytest_pgdbm.services.service import Service


def make(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("select 1")


def test_sub_folders_are_services_of_their_names(tmp_path: Path) -> None:
    make(tmp_path, "migrations/users/1.sql", "migrations/order-items/1.sql", "migrations/.git/x.sql", "migrations/a/b")
    folder = tmp_path / "migrations"
    assert discover(tmp_path, tmp_path) == Discovered(
        {"order-items": Service(folder / "order-items"), "users": Service(folder / "users")}, folder, (folder,)
    )


def test_flat_files_are_the_service_of_the_folder_around(tmp_path: Path) -> None:
    make(tmp_path, "services/users/migrations/1.sql", "services/users/tests/test_x.py")
    found = discover(tmp_path / "services" / "users" / "tests", tmp_path)
    assert found.services == {"users": Service(tmp_path / "services" / "users" / "migrations")}
    assert found.looked_in == (
        tmp_path / "services" / "users" / "tests" / "migrations",
        tmp_path / "services" / "users" / "migrations",
    )


def test_the_nearest_folder_wins_and_those_without_sql_are_passed_by(tmp_path: Path) -> None:
    make(tmp_path, "migrations/users/1.sql", "a/migrations/0001_initial.py", "a/migrations/versions/x.py", "a/b/x")
    assert discover(tmp_path / "a" / "b", tmp_path).folder == tmp_path / "migrations"
    make(tmp_path, "a/migrations/own/1.sql")
    assert list(discover(tmp_path / "a" / "b", tmp_path).services) == ["own"]


def test_nothing_above_the_rootdir_is_looked_at(tmp_path: Path) -> None:
    make(tmp_path, "migrations/users/1.sql", "project/tests/x")
    project = tmp_path / "project"
    assert discover(project / "tests", project) == Discovered(
        {}, None, (project / "tests" / "migrations", project / "migrations")
    )


def test_tests_outside_of_the_rootdir_look_beside_themselves_and_in_the_rootdir(tmp_path: Path) -> None:
    make(tmp_path, "migrations/users/1.sql", "root/migrations/orders/1.sql", "tests/x")
    found = discover(tmp_path / "tests", tmp_path / "root")
    assert list(found.services) == ["orders"]
    assert found.looked_in == (tmp_path / "tests" / "migrations", tmp_path / "root" / "migrations")


def test_files_and_folders_together_are_an_error(tmp_path: Path) -> None:
    make(tmp_path, "migrations/2.sql", "migrations/1.sql", "migrations/users/1.sql", "migrations/orders/1.sql")
    with pytest.raises(ConfigError) as caught:
        discover(tmp_path, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/migrations holds .sql files (1.sql) and folders with .sql files (orders, users): give every"
        " service a folder of its own in it, or list the services in the ini setting pgdbm_services"
    )


def test_ini_lines_name_services_and_folders(tmp_path: Path) -> None:
    make(tmp_path, "services/users/sql/1.sql", "o=rders/1.sql")
    lines = ["users = services/users/sql", "", "  Order 'Items'=o=rders  ", f"other = {tmp_path}/o=rders"]
    assert from_ini(lines, tmp_path) == {
        "users": Service(tmp_path / "services" / "users" / "sql"),
        "Order 'Items'": Service(tmp_path / "o=rders"),
        "other": Service(tmp_path / "o=rders"),
    }


def test_an_ini_line_can_name_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "ini_shop/sql/1.sql", "ini_shop/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert from_ini(["users = ini_shop:sql"], Path("/base")) == {"users": Service(tmp_path / "ini_shop" / "sql")}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("users", "there is no '='; write 'name = path/to/its/migrations'"),
        ("users =", "the path is missing; write 'name = path/to/its/migrations'"),
        ("= sql", "the name is missing; write 'name = path/to/its/migrations'"),
        ("users = nowhere", "there is no folder {}/nowhere"),
        ("users = 1.sql", "there is no folder {}/1.sql"),
    ],
)
def test_a_wrong_ini_line_is_quoted(tmp_path: Path, line: str, why: str) -> None:
    make(tmp_path, "1.sql")
    with pytest.raises(ConfigError) as caught:
        from_ini([line], tmp_path)
    assert str(caught.value) == f"pgdbm_services, line {line!r}: {why.format(tmp_path)}"


def test_a_service_listed_twice_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "sql/1.sql")
    with pytest.raises(ConfigError) as caught:
        from_ini(["users = sql", "users=sql"], tmp_path)
    assert str(caught.value) == (
        "pgdbm_services, line 'users=sql': the service 'users' is listed before; remove one of the lines"
    )
