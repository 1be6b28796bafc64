"""The SQL files of a service: read as pgdbm reads them, refused where pgdbm would go wrong."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pytest_pgdbm.ground.errors import BuildError, MigrationsError, SeedError
from pytest_pgdbm.services.service import Seed, Service, is_path, is_rows, rows_digest

# 001_name, V1__name, 20240131_name, and 2024_01_31_name, whose number is all of the date.
_NUMBER = re.compile(r"V?((?:19|20)[0-9]{2}(?:_[0-9]+)+|[0-9]+)_")

_Wrong: TypeAlias = Callable[[str], BuildError]


class SqlFile(NamedTuple):
    """An SQL file: the name that pgdbm tracks, where it is, its text with plain newlines."""

    name: str
    path: Path
    text: str


def read_migrations(folder: Path, service: str) -> tuple[SqlFile, ...]:
    """The migrations of `service` in the order in which pgdbm applies them.

    As pgdbm does: `*.sql` directly in the folder, not hidden, sorted by path, UTF-8. Raises
    MigrationsError if there are none, if one cannot be read or pgdbm would refuse it, and where
    the order is a matter of luck because two files have one number.
    """
    files = _Files(service, folder)
    paths = files.find()
    read = tuple(files.read(path) for path in paths)
    files.check_numbers(read)
    return read


class _Files:
    """The migrations folder of one service, and the errors about it."""

    def __init__(self, service: str, folder: Path) -> None:
        self._service = service
        self._folder = folder

    def _wrong(self, why: str) -> MigrationsError:
        return MigrationsError(f"the migrations of service {self._service!r}: {why}")

    def find(self) -> list[Path]:
        self._check_folder()
        found = sorted(sql_files(self._folder))
        below = folders_with_sql(self._folder)
        if found and below:
            raise self._wrong(
                f"the folder {self._folder} holds .sql files ({found[0].name}) and so does its"
                f" sub-folder {below[0].name!r}, which pgdbm does not look into; move one of them"
            )
        if not found:
            raise self._wrong(f"the folder {self._folder} holds no .sql file{_below_hint(below)}")
        return found

    def _check_folder(self) -> None:
        if not self._folder.exists():
            raise self._wrong(f"the folder {self._folder} does not exist{_near(self._folder)}")
        if not self._folder.is_dir():
            raise self._wrong(f"{self._folder} is not a folder; name the one that holds the file")
        try:
            next(self._folder.iterdir(), None)
        except OSError as error:
            raise self._wrong(f"the folder {self._folder} cannot be read: {error.strerror}") from error

    def read(self, path: Path) -> SqlFile:
        real = path.resolve()
        if not real.is_relative_to(self._folder.resolve()):
            raise self._wrong(
                f"{path} is a link to {real}, outside of the folder, which pgdbm refuses; copy the"
                " file, or name the folder that it is in"
            )
        text = _text(path, self._wrong)
        if not text.strip():
            raise self._wrong(f"{path} is empty, which pgdbm refuses; write it or remove it")
        if not _holds_statement(text):
            raise self._wrong(f"{path} holds no SQL statement, which pgdbm cannot apply; write one or remove the file")
        return SqlFile(real.name, path, text)

    def check_numbers(self, files: Iterable[SqlFile]) -> None:
        seen: dict[object, SqlFile] = {}
        for file in files:
            other = seen.setdefault(number_of(file.name) or file.name, file)
            if other is not file:
                raise self._wrong(
                    f"{other.path.name} and {file.path.name} in {self._folder} have one number, so"
                    " their order is by chance; give one of them another"
                )


def sql_files(folder: Path) -> list[Path]:
    """The files directly in `folder` that pgdbm takes for migrations, in no order."""
    return [f for f in folder.glob("*.sql") if f.is_file() and not f.name.startswith(".")]


def folders_with_sql(folder: Path) -> list[Path]:
    """The sub-folders of `folder` that hold migrations, sorted; not the hidden ones."""
    below = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return sorted(f for f in below if sql_files(f))


def _below_hint(below: Sequence[Path]) -> str:
    if not below:
        return ""
    return f"; its sub-folders do, so name one of them: {', '.join(f.name for f in below)}"


def _near(path: Path) -> str:
    """A hint at what is there and called nearly the same; where nothing is, what does exist."""
    parent = path.parent
    if not parent.is_dir():
        exists = next(p for p in parent.parents if p.is_dir())
        return f"; the nearest folder that does is {exists}"
    try:
        names = [f.name for f in parent.iterdir() if f.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {parent / near[0]}?" if near else ""


def _text(path: Path, wrong: _Wrong) -> str:
    """The text of an SQL file that the server can take."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise wrong(f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise wrong(f"{path} cannot be read: {error.strerror}") from error
    if text.startswith("\ufeff"):
        raise wrong(
            f"{path} starts with a byte order mark, which is a syntax error to PostgreSQL; save it as UTF-8 without one"
        )
    if "\0" in text:
        raise wrong(f"{path} holds a NUL character, which PostgreSQL cannot take; remove it")
    return text


def _holds_statement(text: str) -> bool:
    # Here, since a run that only lists services in its ini needs no lexer.
    from pytest_pgdbm.sql.lexer import holds_statement

    return holds_statement(text)


def read_seed(path: Path, service: str, origin: Callable[[], str] = str) -> SqlFile:
    """The SQL file of a seed of `service`. Raises SeedError if it is missing or cannot be read.

    `origin` tells where it was asked for, as `declared at tests/conftest.py:3`, or nothing.
    """

    def wrong(why: str) -> SeedError:
        return SeedError(", ".join(filter(None, [f"a seed of service {service!r}", origin()])) + f": {why}")

    if not path.exists():
        raise wrong(f"the file {path} does not exist{_near_file(path)}")
    if not path.is_file():
        raise wrong(f"{path} is not a file; name an .sql file, or several")
    return SqlFile(path.name, path, _text(path, wrong))


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor does its folder{_near(path.parent)}"
    names = [f.name for f in path.parent.iterdir() if f.is_file()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def number_of(name: str) -> tuple[int, ...] | None:
    """The number that a file name starts with: (7,) for `007_x.sql` and for `V7__x.sql`."""
    match = _NUMBER.match(name)
    return tuple(int(part) for part in match[1].split("_")) if match else None


def sort_warning(files: Sequence[SqlFile]) -> str | None:
    """What is odd where migrations run in another order than their numbers say; None if nothing.

    pgdbm sorts names as texts, so that `10_b.sql` runs before `9_a.sql`.
    """
    numbered = [(number, file) for file in files if (number := number_of(file.path.name))]
    for (number, file), (following, after) in pairwise(numbered):
        if number > following:
            return (
                f"{file.path.name} runs before {after.path.name} in {file.path.parent}: pgdbm sorts"
                " names as text; give all numbers the same length with zeros in front"
            )
    return None


def fingerprint(
    service: Service,
    migrations: Iterable[SqlFile],
    seeds: Iterable[SqlFile] = (),
    versions: Iterable[str] = (),
) -> str:
    """A digest of everything that decides what a built schema of `service` holds.

    `seeds` are the files of its SQL seeds, `versions` whatever else counts: the server's, pgdbm's
    and the plugin's. A function counts by its name and source, not by what it calls.
    """
    parts: list[tuple[str, ...]] = [("service", service.module or "", service.migrations_table)]
    parts += [("needs", *service.needs), ("extensions", *service.extensions)]
    parts += [("migration", file.name, file.text) for file in migrations]
    parts += [("seed file", file.name, file.text) for file in seeds]
    parts += [("seed", *_seed_parts(seed)) for seed in service.seeds]
    parts += [("version", version) for version in versions]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _seed_parts(seed: Seed) -> tuple[str, ...]:
    if is_path(seed):
        return ("file", Path(seed).name)
    if is_rows(seed):
        return ("rows", rows_digest(seed))
    return (
        "call",
        getattr(seed, "__module__", ""),
        getattr(seed, "__qualname__", ""),
        _source(seed),
    )


def _source(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
