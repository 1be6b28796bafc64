"""The declaration of a service: what it takes, what it refuses and in which words."""

from __future__ import annotations

import datetime
import decimal
import functools
import sys
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.services.service import Service, rows_digest


async def load(db: Any) -> None: ...


async def load_more(db: Any, rows: int) -> None: ...


def plain(db: Any) -> None: ...


class Loader:
    async def __call__(self, db: Any) -> None: ...

    async def method(self, db: Any) -> None: ...


async def generator(db: Any) -> Any:
    yield


SEED_KINDS = "the path of an .sql file, rows as {'table': [{'column': value}]}, or an 'async def load(db)'"


def test_a_single_value_becomes_a_tuple_as_several_do() -> None:
    one = Service("m", seed="a.sql", needs="users", extensions="citext")
    assert (one.seeds, one.needs, one.extensions) == (("a.sql",), ("users",), ("citext",))
    several = Service(Path("m"), seed=["a.sql", {"t": []}, load], needs=["a", "b", "a"], extensions=("citext",))
    assert several.seeds == ("a.sql", {"t": []}, load)
    assert several.needs == ("a", "b")


def test_what_is_left_out_has_the_defaults_of_pgdbm() -> None:
    service = Service("m")
    assert (service.seeds, service.needs, service.extensions) == ((), (), ())
    assert (service.module, service.migrations_table) == (None, "schema_migrations")


def test_only_the_migrations_go_without_their_name() -> None:
    with pytest.raises(TypeError):
        Service("m", "seed.sql")  # type: ignore[misc]


def test_async_functions_of_every_make_are_seeds() -> None:
    loaders = [load, functools.partial(load_more, rows=1), Loader(), Loader().method]
    assert Service("m", seed=loaders).seeds == tuple(loaders)


def test_equal_services_are_equal_and_hash_alike_rows_included() -> None:
    first, second = (Service("m", seed=[{"t": [{"a": 1}]}], needs="x") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != Service("m", seed=[{"t": [{"a": 2}]}], needs="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": plain}, "the seed 'plain' is not an async function; write it as 'async def plain(db): ...'"),
        (
            {"seed": [generator]},
            "the seed 'generator' is not an async function; write it as 'async def generator(db): ...'",
        ),
        ({"seed": Loader}, "the seed 'Loader' is not an async function; write it as 'async def Loader(db): ...'"),
        ({"seed": 3}, f"seed=3 is not a seed; give {SEED_KINDS}, or a list of these"),
        ({"seed": None}, f"seed=None is not a seed; give {SEED_KINDS}, or a list of these"),
        ({"seed": ["a.sql", 3]}, f"3 in seed= is not a seed; give {SEED_KINDS}"),
        (
            {"seed": "insert into t values (1);"},
            "seed='insert into t values (1);' looks like SQL; put it into a file and give the file's path",
        ),
        (
            {"seed": " "},
            "seed=' ' is not a path; give a path relative to the file that says it, an absolute one, or"
            " 'package:folder'",
        ),
        (
            {"seed": {"t": {"a": 1}}},
            "seed rows of 't': {'a': 1} is not a list of rows; write {'t': [{'column': value}]}",
        ),
        ({"seed": {"t": "abc"}}, "seed rows of 't': 'abc' is not a list of rows; write {'t': [{'column': value}]}"),
        (
            {"seed": {"t": [{"a": 1}, 2]}},
            "seed rows of 't': row 2 is 2, not a mapping of columns; write {'column': value}",
        ),
        ({"seed": {"t": [{1: 1}]}}, "seed rows of 't': row 1 has a column 1, which is not a name"),
        ({"seed": {3: []}}, "seed rows: the table's name 3 is not a text"),
        ({"needs": 3}, "needs=3 is not a name or a list of names"),
        ({"needs": ["users", ""]}, "needs=['users', '']: '' is not a name"),
        ({"extensions": [None]}, "extensions=[None]: None is not a name"),
        (
            {"module": ""},
            "module='' cannot be pgdbm's module name; give a text of 1 to 100 characters, or leave it out",
        ),
        (
            {"module": "x" * 101},
            "module='" + "x" * 76 + "... cannot be pgdbm's module name;"
            " give a text of 1 to 100 characters, or leave it out",
        ),
        (
            {"migrations_table": "my table"},
            "migrations_table='my table' is not a table name that pgdbm takes; start with a letter or underscore"
            " and go on with letters, digits and underscores, at most 63",
        ),
        (
            {"migrations_table": "t\n"},
            "migrations_table='t\\n' is not a table name that pgdbm takes; start with a letter or underscore"
            " and go on with letters, digits and underscores, at most 63",
        ),
    ],
)
def test_a_value_that_cannot_be_right_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Service("m", **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("migrations", ["", "  ", None, 3, b"m", "a\0b"])
def test_migrations_must_be_a_path(migrations: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Service(migrations)
    assert str(caught.value) == (
        f"migrations={migrations!r} is not a path; give a path relative to the file that says it, an absolute one,"
        " or 'package:folder'"
    )


def test_relative_paths_start_at_the_base(tmp_path: Path) -> None:
    service = Service("../sql", seed=["a.sql", Path("b/c.sql"), load, {"t": []}]).resolved(tmp_path / "tests")
    assert service.migrations == tmp_path / "sql"
    assert service.seeds == (tmp_path / "tests" / "a.sql", tmp_path / "tests" / "b" / "c.sql", load, {"t": []})
    assert service.resolved(Path("/elsewhere")) == service


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "heavy_shop" / "users"
    (inner / "sql").mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    service = Service("heavy_shop.users:sql", seed="heavy_shop:seeds/a.sql").resolved(Path("/base"))
    assert service.migrations == inner / "sql"
    assert service.seeds == (inner.parent / "seeds" / "a.sql",)
    assert "heavy_shop" not in sys.modules


def test_a_namespace_package_in_two_folders_gives_the_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, folder in (("a", "one"), ("b", "sql")):
        (tmp_path / part / "spread_shop" / folder).mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / part)
    assert Service("spread_shop:sql").resolved(Path("/base")).migrations == tmp_path / "b" / "spread_shop" / "sql"
    assert Service("spread_shop:one").resolved(Path("/base")).migrations == tmp_path / "a" / "spread_shop" / "one"


@pytest.mark.parametrize("package", ["no_such_package", "pytest_pgdbm.no_such", "json.decoder", "__main__"])
def test_a_package_that_cannot_be_found_is_named(package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Service(f"{package}:sql").resolved(Path("/base"))
    assert str(caught.value) == (
        f"'{package}:sql' names the package '{package}', which cannot be found; install it, or add its folder to"
        " pytest's 'pythonpath' setting"
    )


def test_a_drive_letter_is_no_package() -> None:
    assert Service("C:\\sql").resolved(Path("/base")).migrations == Path("/base/C:\\sql")


def test_variants_differ_by_paths_row_contents_and_functions() -> None:
    rows = {"t": [{"a": 1, "b": None}]}
    assert Service("m", seed=rows).variant == Service("m", seed={"t": [{"a": 1, "b": None}]}).variant
    assert Service("m", seed="a.sql").variant == Service("m", seed=Path("a.sql")).variant
    assert Service("m", seed=load).variant == Service("m", seed=[load]).variant
    seeds: list[Any] = [(), "a.sql", "b.sql", rows, {"t": [{"a": "1", "b": None}]}, load, Loader(), Loader()]
    variants = [Service("m", seed=seed).variant for seed in seeds]
    assert len(set(variants)) == len(seeds)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, "1"),
        (1, True),
        (1.0, 1),
        (decimal.Decimal("1"), "1"),
        (b"1", "1"),
        (datetime.date(2024, 1, 1), "2024-01-01"),
        (None, "null"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_the_digest_of_rows_tells_types_and_values_apart(first: object, second: object) -> None:
    assert rows_digest({"t": [{"a": first}]}) != rows_digest({"t": [{"a": second}]})


def test_the_digest_of_rows_takes_any_mapping_and_any_text() -> None:
    assert rows_digest({"t": [UserDict({"a": UserDict({"b": 1})})]}) == rows_digest({"t": [{"a": {"b": 1}}]})
    assert rows_digest({"t": [{"a": "\ud800"}]}) != rows_digest({"t": [{"a": "\ud801"}]})
