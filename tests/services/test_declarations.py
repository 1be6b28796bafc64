"""Which of the declarations counts for a test: the nearest, as with fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.services.declarations import Declaration, known_services
from pytest_pgdbm.services.service import Service

ROOT = Path("/project")
TEST = ROOT / "tests" / "api" / "test_users.py"
FOUND = {"users": Service(ROOT / "migrations" / "users"), "orders": Service(ROOT / "migrations" / "orders")}


def declare(name: str | None, origin: str, line: int = 1, **values: Any) -> Declaration:
    return Declaration(name=name, origin=ROOT / origin, line=line, **values)


def migrations(declarations: list[Declaration], test: Path = TEST) -> str:
    return str(known_services(declarations, test, FOUND)["users"].migrations)


def test_without_declarations_the_found_services_are_known() -> None:
    assert known_services([], TEST, FOUND) == FOUND


def test_the_nearest_declaration_wins_whatever_order_they_come_in() -> None:
    near = [
        declare("users", "conftest.py", migrations="root"),
        declare("users", "tests/conftest.py", migrations="tests"),
        declare("users", "tests/api/conftest.py", migrations="api"),
        declare("users", "tests/api/test_users.py", migrations="module"),
    ]
    for count, expected in ((1, "root"), (2, "tests/tests"), (3, "tests/api/api"), (4, "tests/api/module")):
        assert migrations(near[:count]) == f"/project/{expected}"
        assert migrations(near[:count][::-1]) == f"/project/{expected}"


def test_a_declaration_counts_in_its_folder_and_below_only() -> None:
    assert migrations([declare("users", "other/conftest.py", migrations="x")]) == "/project/migrations/users"
    assert migrations([declare("users", "tests/api/v2/conftest.py", migrations="x")]) == "/project/migrations/users"


def test_a_test_module_declares_for_itself_alone_and_a_helper_for_its_folder() -> None:
    for other in ("tests/api/test_other.py", "tests/api/other_test.py"):
        assert migrations([declare("users", other, migrations="x")]) == "/project/migrations/users"
    assert migrations([declare("users", "tests/databases.py", migrations="x")]) == "/project/tests/x"


def test_a_test_file_of_any_name_can_declare() -> None:
    declarations = [declare("users", "tests/api/check_users.py", migrations="x")]
    assert migrations(declarations, ROOT / "tests" / "api" / "check_users.py") == "/project/tests/api/x"


def test_what_a_declaration_leaves_out_comes_from_further_out() -> None:
    declarations = [
        declare("users", "conftest.py", module="users", needs="orders", seed="root.sql"),
        declare("users", "tests/conftest.py", seed=["near.sql", {"t": []}], extensions="citext"),
    ]
    assert known_services(declarations, TEST, FOUND)["users"] == Service(
        ROOT / "migrations" / "users",
        seed=(ROOT / "tests" / "near.sql", {"t": []}),
        needs="orders",
        module="users",
        extensions="citext",
    )


def test_one_with_migrations_is_a_service_of_its_own() -> None:
    declarations = [
        declare("users", "conftest.py", module="users", seed="root.sql"),
        declare("users", "tests/conftest.py", migrations="sql"),
    ]
    assert known_services(declarations, TEST, FOUND)["users"] == Service(ROOT / "tests" / "sql")


def test_an_empty_seed_takes_seeds_away() -> None:
    declarations = [
        declare("users", "conftest.py", seed="root.sql"),
        declare("users", "tests/conftest.py", seed=()),
    ]
    assert known_services(declarations, TEST, FOUND)["users"].seeds == ()


def test_one_without_migrations_for_a_service_that_nobody_knows_is_left_out() -> None:
    assert "billing" not in known_services([declare("billing", "conftest.py", seed="x.sql")], TEST, FOUND)


def test_one_without_a_name_declares_nothing() -> None:
    assert known_services([declare(None, "conftest.py", seed="x.sql")], TEST, FOUND) == FOUND


def test_in_one_file_the_first_defines_and_the_others_are_variants() -> None:
    declarations = [
        declare("users", "conftest.py", 1, seed="first.sql"),
        declare("users", "conftest.py", 2, seed="second.sql"),
    ]
    services = known_services(declarations, TEST, FOUND)
    assert services["users"].seeds == (ROOT / "first.sql",)
    variant = declarations[1].over(services["users"])
    assert variant is not None
    assert variant.seeds == (ROOT / "second.sql",)
    assert variant.variant != services["users"].variant


def test_in_one_file_the_one_with_migrations_defines() -> None:
    declarations = [
        declare("billing", "conftest.py", 1, seed="x.sql"),
        declare("billing", "conftest.py", 2, migrations="billing"),
    ]
    assert known_services(declarations, TEST, FOUND)["billing"] == Service(ROOT / "billing")


def test_two_folders_for_one_service_in_one_file_contradict_each_other() -> None:
    declarations = [
        declare("users", "conftest.py", 3, migrations="a"),
        declare("users", "conftest.py", 7, migrations="b"),
    ]
    with pytest.raises(ConfigError) as caught:
        known_services(declarations, TEST, FOUND)
    assert str(caught.value) == (
        "contradictory declarations of service 'users' in /project/conftest.py: migrations='a' in line 3,"
        " migrations='b' in line 7; give one of them another name"
    )


def test_one_folder_written_in_two_ways_is_no_contradiction() -> None:
    declarations = [
        declare("users", "conftest.py", 3, migrations="a"),
        declare("users", "conftest.py", 7, migrations=ROOT / "x" / ".." / "a"),
    ]
    assert migrations(declarations) == "/project/a"


def test_without_any_migrations_there_is_no_service() -> None:
    assert declare("users", "conftest.py").over(None) is None


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("", {}, "pgdbm_db(''): a service's name is a text"),
        (3, {}, "pgdbm_db(3): a service's name is a text"),
        (None, {"migrations": "x"}, "pgdbm_db(migrations=...) needs the service's name before it"),
        ("users", {"scope": "test"}, "scope='test' is none of function, class, module, package, session"),
        ("users", {"needs": 3}, "needs=3 is not a name or a list of names"),
    ],
)
def test_wrong_values_are_told_where_the_declaration_stands(name: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(name, "conftest.py", **values)
    assert str(caught.value) == message


def test_a_declaration_tells_its_place() -> None:
    assert declare("users", "conftest.py", 12).place == "/project/conftest.py:12"
