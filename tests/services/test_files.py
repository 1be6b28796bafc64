"""Migration files are read as pgdbm reads them; what would go wrong later is said at once."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgdbm import AsyncMigrationManager

from pytest_pgdbm.ground.errors import MigrationsError, SeedError
from pytest_pgdbm.services.files import (
    SqlFile,
    fingerprint,
    number_of,
    read_migrations,
    read_seed,
    sort_warning,
)
from pytest_pgdbm.services.service import Service


def write(folder: Path, *names: str, text: str = "select 1;") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(MigrationsError) as caught:
        read_migrations(folder, "users")
    return str(caught.value)


def test_the_files_are_those_that_pgdbm_finds_in_its_order(tmp_path: Path) -> None:
    write(tmp_path, "10_b.sql", "9_a.sql", "V2__c.sql", "note.txt", "d.SQL", ".hidden.sql", "001.sql~", "x.sql.bak")
    (tmp_path / "0_folder.sql").mkdir()
    (tmp_path / "3_crlf.sql").write_bytes(b"select 1;\r\nselect '\xc3\xbc';\r\n")
    (tmp_path / "4_link.sql").symlink_to(tmp_path / "note.txt")
    manager = AsyncMigrationManager(SimpleNamespace(schema="x"), migrations_path=str(tmp_path))  # type: ignore[arg-type]
    expected = asyncio.run(manager.find_migration_files())
    files = read_migrations(tmp_path, "users")
    assert [(file.name, file.text) for file in files] == [(m.filename, m.content) for m in expected]
    assert [file.path.name for file in files] == ["10_b.sql", "3_crlf.sql", "4_link.sql", "9_a.sql", "V2__c.sql"]
    assert files[1].text == "select 1;\nselect 'ü';\n"


def test_a_folder_that_is_a_link_is_read(tmp_path: Path) -> None:
    write(tmp_path / "real", "1_a.sql")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [file.path for file in read_migrations(tmp_path / "link", "users")] == [tmp_path / "link" / "1_a.sql"]


def test_a_missing_folder_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    assert refusal(tmp_path / "migration") == (
        f"the migrations of service 'users': the folder {tmp_path}/migration does not exist;"
        f" did you mean {tmp_path}/migrations?"
    )


def test_a_missing_folder_is_told_without_a_near_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x") == f"the migrations of service 'users': the folder {tmp_path}/x does not exist"


def test_a_missing_folder_in_missing_folders_is_told_with_the_one_that_exists(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a" / "b" / "c") == (
        f"the migrations of service 'users': the folder {tmp_path}/a/b/c does not exist;"
        f" the nearest folder that does is {tmp_path}"
    )


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "1_a.sql") / "1_a.sql"
    assert refusal(path) == (
        f"the migrations of service 'users': {path} is not a folder; name the one that holds the file"
    )


def test_a_folder_without_sql_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.py", ".hidden.sql")
    assert refusal(tmp_path) == f"the migrations of service 'users': the folder {tmp_path} holds no .sql file"


def test_a_folder_of_several_services_is_refused_with_their_names(tmp_path: Path) -> None:
    write(tmp_path, "users/1_a.sql", "orders/1_a.sql")
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': the folder {tmp_path} holds no .sql file;"
        " its sub-folders do, so name one of them: orders, users"
    )


def test_files_and_folders_of_files_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1_a.sql", "old/0_a.sql")
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': the folder {tmp_path} holds .sql files (1_a.sql) and so does its"
        " sub-folder 'old', which pgdbm does not look into; move one of them"
    )


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, "1_a.sql", text=text)
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {tmp_path}/1_a.sql is empty, which pgdbm refuses; write it or remove it"
    )


@pytest.mark.parametrize("text", ["-- later", ";", "/* a; /* b */ */\n;\n-- pgdbm:no-transaction\n"])
def test_a_file_without_a_statement_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, "1_a.sql", text=text)
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {tmp_path}/1_a.sql holds no SQL statement, which pgdbm cannot apply;"
        " write one or remove the file"
    )


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_a.sql").write_bytes(b"-- gr\xfc\xdfe")
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {tmp_path}/1_a.sql is not UTF-8: invalid start byte at byte 5;"
        " save it as UTF-8"
    )


def test_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_a.sql").write_bytes(b"\xef\xbb\xbfselect 1")
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {tmp_path}/1_a.sql starts with a byte order mark, which is a syntax"
        " error to PostgreSQL; save it as UTF-8 without one"
    )


def test_a_nul_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_a.sql").write_bytes(b"select 1\0")
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {tmp_path}/1_a.sql holds a NUL character, which PostgreSQL cannot take;"
        " remove it"
    )


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "shared.sql", "m/1_a.sql")
    (tmp_path / "m" / "2_b.sql").symlink_to(tmp_path / "shared.sql")
    assert refusal(tmp_path / "m") == (
        f"the migrations of service 'users': {tmp_path}/m/2_b.sql is a link to {tmp_path}/shared.sql, outside of the"
        " folder, which pgdbm refuses; copy the file, or name the folder that it is in"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("001_a.sql", "001_b.sql"),
        ("01_a.sql", "1_b.sql"),
        ("001_a.down.sql", "001_a.up.sql"),
        ("V1__a.sql", "V1__b.sql"),
        ("001_a.sql", "V1__a.sql"),
        ("20240131120000_a.sql", "20240131120000_b.sql"),
        ("2024_01_31_a.sql", "2024_01_31_b.sql"),
    ],
)
def test_two_files_with_one_number_are_refused(tmp_path: Path, first: str, second: str) -> None:
    write(tmp_path, first, second)
    assert refusal(tmp_path) == (
        f"the migrations of service 'users': {first} and {second} in {tmp_path} have one number, so their order is by"
        " chance; give one of them another"
    )


def test_a_link_to_another_migration_is_refused_since_pgdbm_tracks_both_by_one_name(tmp_path: Path) -> None:
    write(tmp_path, "a.sql")
    (tmp_path / "b.sql").symlink_to(tmp_path / "a.sql")
    assert "a.sql and b.sql" in refusal(tmp_path)


def test_dates_with_underscores_are_numbers_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, "2024_01_31_a.sql", "2024_02_01_a.sql", "users.sql", "001a.sql", "001-b.sql")
    assert len(read_migrations(tmp_path, "users")) == 5


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder of its own, and this process in the rights of an ordinary user, whom permissions bind."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_an_unreadable_file_is_refused() -> None:
    with as_nobody() as folder:
        write(folder, "1_a.sql").joinpath("1_a.sql").chmod(0)
        message = refusal(folder)
    assert message == f"the migrations of service 'users': {folder}/1_a.sql cannot be read: Permission denied"


def test_an_unreadable_folder_is_refused() -> None:
    with as_nobody() as folder:
        inner = write(folder / "m", "1_a.sql")
        inner.chmod(0o100)
        try:
            message = refusal(inner)
        finally:
            inner.chmod(0o700)
    assert message == f"the migrations of service 'users': the folder {inner} cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("001_a.sql", (1,)),
        ("V12__a.sql", (12,)),
        ("20240131_a.sql", (20240131,)),
        ("2024_01_31_a.sql", (2024, 1, 31)),
        ("001_2_factor.sql", (1,)),
        ("a_1.sql", None),
        ("001.sql", None),
        ("001-a.sql", None),
    ],
)
def test_the_number_of_a_file_is_read_as_pgdbm_reads_versions(name: str, number: tuple[int, ...] | None) -> None:
    assert number_of(name) == number


def files(*names: str) -> list[SqlFile]:
    return [SqlFile(name, Path("m", name), "select 1") for name in names]


def test_a_text_order_that_is_not_the_order_of_numbers_is_warned_of() -> None:
    assert sort_warning(files("10_b.sql", "9_a.sql")) == (
        "10_b.sql runs before 9_a.sql in m: pgdbm sorts names as text; give all numbers the same length with zeros in"
        " front"
    )


@given(st.lists(st.integers(0, 999), unique=True))
def test_numbers_of_one_length_are_never_warned_of(numbers: list[int]) -> None:
    assert sort_warning(files(*sorted(f"{n:03}_a.sql" for n in numbers), "zz.sql")) is None


def test_a_seed_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "seed.sql", text="insert 'ü';\n") / "seed.sql"
    assert read_seed(path, "users") == SqlFile("seed.sql", path, "insert 'ü';\n")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sed.sql", "the file {}/sed.sql does not exist; did you mean {}/seed.sql?"),
        ("other", "the file {}/other does not exist"),
        ("x/y/z.sql", "the file {}/x/y/z.sql does not exist, nor does its folder; the nearest folder that does is {}"),
        ("folder", "{}/folder is not a file; name an .sql file, or several"),
        ("latin.sql", "{}/latin.sql is not UTF-8: invalid start byte at byte 0; save it as UTF-8"),
    ],
)
def test_a_seed_that_cannot_be_read_is_told(tmp_path: Path, name: str, why: str) -> None:
    write(tmp_path, "seed.sql", "folder/x")
    (tmp_path / "latin.sql").write_bytes(b"\xfc")
    with pytest.raises(SeedError) as caught:
        read_seed(tmp_path / name, "users")
    assert str(caught.value) == "a seed of service 'users': " + why.format(tmp_path, tmp_path)
    with pytest.raises(SeedError) as caught:
        read_seed(tmp_path / name, "users", lambda: "declared at conftest.py:3")
    assert str(caught.value).startswith("a seed of service 'users', declared at conftest.py:3: ")


async def load(db: Any) -> None: ...


def test_a_fingerprint_stays_for_the_same_and_changes_with_everything_that_counts() -> None:
    base, migrations = Service("m"), files("1_a.sql", "2_b.sql")
    same = fingerprint(base, migrations, (), ["pg 18"])
    assert same == fingerprint(Service("elsewhere"), files("1_a.sql", "2_b.sql"), [], ("pg 18",))
    others = [
        fingerprint(base, migrations, (), ["pg 17"]),
        fingerprint(base, migrations),
        fingerprint(base, files("1_a.sql"), (), ["pg 18"]),
        fingerprint(base, files("1_a.sql", "2_c.sql"), (), ["pg 18"]),
        fingerprint(base, reversed(migrations), (), ["pg 18"]),
        fingerprint(base, migrations, files("seed.sql"), ["pg 18"]),
        fingerprint(Service("m", module="x"), migrations, (), ["pg 18"]),
        fingerprint(Service("m", migrations_table="x"), migrations, (), ["pg 18"]),
        fingerprint(Service("m", needs="x"), migrations, (), ["pg 18"]),
        fingerprint(Service("m", extensions="x"), migrations, (), ["pg 18"]),
        fingerprint(Service("m", seed={"t": [{"a": 1}]}), migrations, (), ["pg 18"]),
        fingerprint(Service("m", seed={"t": [{"a": 2}]}), migrations, (), ["pg 18"]),
        fingerprint(Service("m", seed=load), migrations, (), ["pg 18"]),
        fingerprint(Service("m", seed="s.sql"), migrations, (), ["pg 18"]),
    ]
    assert len({same, *others}) == len(others) + 1
