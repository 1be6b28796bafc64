"""The declaration of a service: its migrations, seeds and needs, checked when it is made."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

from pytest_pgdbm.ground.errors import ConfigError

PathLike: TypeAlias = "str | os.PathLike[str]"
Rows: TypeAlias = "Mapping[str, Sequence[Mapping[str, Any]]]"
Loader: TypeAlias = "Callable[[Any], Awaitable[object]]"
Seed: TypeAlias = "PathLike | Rows | Loader"
"""The path of an SQL file; rows by table, `{"users": [{"id": 1}]}`; or `async def load(db)`."""

DEFAULT_TABLE = "schema_migrations"
_PLAIN_IDENTIFIER = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}")
_PACKAGE_PATH = re.compile(r"(?P<package>[A-Za-z_]\w+(?:\.[A-Za-z_]\w*)*):(?P<inside>.+)")
_LONGEST_MODULE = 100
_SEED_KINDS = "the path of an .sql file, rows as {'table': [{'column': value}]}, or an 'async def load(db)'"


@dataclass(frozen=True)
class Service:
    """A pgdbm service as a test sees it.

    `migrations` is the folder of its .sql files: a path, or `package:folder` in an importable
    package. `seed` is one or several of: the path of an SQL file, rows by table, an
    `async def load(db)`; they run in order after the migrations. `needs` names services whose
    tables its migrations or seeds use; those named as `{{tables.<service>.<table>}}` are found
    without it. `module` is the module name under which the service itself applies its
    migrations, `migrations_table` where pgdbm keeps account of them, and `extensions` what has
    to be there before the first migration. Each but `migrations` and `migrations_table` may be
    one value or a sequence.

    Raises ConfigError for a value that cannot be right.
    """

    migrations: PathLike
    seed: Seed | Sequence[Seed] = field(default=(), kw_only=True)
    needs: str | Sequence[str] = field(default=(), kw_only=True)
    module: str | None = field(default=None, kw_only=True)
    migrations_table: str = field(default=DEFAULT_TABLE, kw_only=True)
    extensions: str | Sequence[str] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Checks each value, and makes tuples of what may be one value or several."""
        _check_path("migrations", self.migrations)
        _check_module(self.module)
        _check_table(self.migrations_table)
        object.__setattr__(self, "seed", checked_seeds(self.seed))
        object.__setattr__(self, "needs", _checked_names("needs", self.needs))
        object.__setattr__(self, "extensions", _checked_names("extensions", self.extensions))

    def __hash__(self) -> int:
        """The same for equal services; rows alone would have no hash."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((os.fspath(self.migrations), self.variant, self.needs, self.module))

    @property
    def seeds(self) -> tuple[Seed, ...]:
        """The seeds in the order in which they run."""
        return cast("tuple[Seed, ...]", self.seed)

    @property
    def variant(self) -> Hashable:
        """A key that two services share if their seeds are the same.

        Paths count by their text, rows by their content, functions by identity.
        """
        return tuple(_seed_key(seed) for seed in self.seeds)

    def resolved(self, base: Path) -> Service:
        """The same service with absolute paths: relative ones start at the folder `base`.

        Raises ConfigError if a package of `package:folder` cannot be found.
        """
        seeds = tuple(absolute(seed, base) if is_path(seed) else seed for seed in self.seeds)
        return replace(self, migrations=absolute(self.migrations, base), seed=seeds)


def is_path(seed: object) -> TypeGuard[PathLike]:
    """Whether a seed is the path of an SQL file."""
    return isinstance(seed, (str, os.PathLike))


def is_rows(seed: object) -> TypeGuard[Rows]:
    """Whether a seed is rows by table."""
    return isinstance(seed, Mapping)


def rows_digest(rows: Rows) -> str:
    """A digest of rows: equal for equal tables, rows, columns and values in the same order."""
    text = json.dumps(rows, default=_plain, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object) -> object:
    """What JSON has no form for: other mappings as they are, anything else by type and `repr`."""
    if isinstance(value, Mapping):
        return dict(value)
    return f"{type(value).__qualname__}:{value!r}"


class _Same:
    """A key for one callable, which it keeps alive so that no other gets its identity."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._loader is self._loader

    def __hash__(self) -> int:
        return id(self._loader)


def _seed_key(seed: Seed) -> Hashable:
    if is_path(seed):
        return ("file", os.fspath(seed))
    if is_rows(seed):
        return ("rows", rows_digest(seed))
    return ("call", _Same(cast("Loader", seed)))


def checked_seeds(value: object) -> tuple[Seed, ...]:
    """One seed or a sequence of them as a tuple. Raises ConfigError for what is not a seed."""
    single = is_path(value) or is_rows(value) or callable(value)
    if not single and not isinstance(value, Sequence):
        raise ConfigError(f"seed={value!r} is not a seed; give {_SEED_KINDS}, or a list of these")
    seeds = (value,) if single else tuple(cast("Sequence[object]", value))
    for seed in seeds:
        _check_seed(seed)
    return cast("tuple[Seed, ...]", seeds)


def _check_seed(seed: object) -> None:
    if is_path(seed):
        _check_seed_path(seed)
    elif is_rows(seed):
        _check_rows(seed)
    elif not callable(seed):
        raise ConfigError(f"{seed!r} in seed= is not a seed; give {_SEED_KINDS}")
    elif not _is_async(seed):
        raise ConfigError(
            f"the seed {_callable_name(seed)} is not an async function;"
            f" write it as 'async def {getattr(seed, '__name__', 'load')}(db): ...'"
        )


def _check_seed_path(seed: PathLike) -> None:
    text = os.fspath(seed)
    if isinstance(text, str) and (";" in text or "\n" in text):
        raise ConfigError(f"seed={_short(text)} looks like SQL; put it into a file and give the file's path")
    _check_path("seed", seed)


def _is_async(function: Callable[..., object]) -> bool:
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _callable_name(function: Callable[..., object]) -> str:
    return repr(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _check_rows(rows: Mapping[Any, Any]) -> None:
    for table, lines in rows.items():
        if not isinstance(table, str) or not table:
            raise ConfigError(f"seed rows: the table's name {table!r} is not a text")
        if isinstance(lines, (str, bytes)) or not isinstance(lines, Sequence):
            raise ConfigError(
                f"seed rows of {table!r}: {_short(lines)} is not a list of rows;"
                " write {'" + table + "': [{'column': value}]}"
            )
        for number, row in enumerate(lines, start=1):
            _check_row(table, number, row)


def _check_row(table: str, number: int, row: object) -> None:
    if not isinstance(row, Mapping):
        raise ConfigError(
            f"seed rows of {table!r}: row {number} is {_short(row)}, not a mapping of columns;"
            " write {'column': value}"
        )
    for column in row:
        if not isinstance(column, str) or not column:
            raise ConfigError(f"seed rows of {table!r}: row {number} has a column {column!r}, which is not a name")


def _check_path(what: str, value: object) -> None:
    text = os.fspath(value) if is_path(value) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ConfigError(
            f"{what}={value!r} is not a path; give a path relative to the file that says it, an"
            " absolute one, or 'package:folder'"
        )


def _check_module(module: object) -> None:
    if module is None:
        return
    if not isinstance(module, str) or not 0 < len(module) <= _LONGEST_MODULE or "\0" in module:
        raise ConfigError(
            f"module={_short(module)} cannot be pgdbm's module name;"
            f" give a text of 1 to {_LONGEST_MODULE} characters, or leave it out"
        )


def _check_table(table: object) -> None:
    if not isinstance(table, str) or not _PLAIN_IDENTIFIER.fullmatch(table):
        raise ConfigError(
            f"migrations_table={_short(table)} is not a table name that pgdbm takes; start with a"
            " letter or underscore and go on with letters, digits and underscores, at most 63"
        )


def _checked_names(what: str, value: object) -> tuple[str, ...]:
    """One name or several as a tuple without repetition."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or isinstance(names, bytes):
        raise ConfigError(f"{what}={value!r} is not a name or a list of names")
    for name in names:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ConfigError(f"{what}={value!r}: {name!r} is not a name")
    return tuple(dict.fromkeys(names))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def absolute(path: PathLike, base: Path) -> Path:
    """`path` from the folder `base`, or from a package if it is `package:inside`.

    Raises ConfigError if the package cannot be found. Whether the path exists is not looked at.
    """
    text = os.fspath(path)
    match = _PACKAGE_PATH.fullmatch(text)
    if match is not None:
        return _inside_package(match["package"], match["inside"], text)
    return Path(os.path.normpath(base / text))


def _inside_package(package: str, inside: str, text: str) -> Path:
    folders = _package_folders(package)
    if not folders:
        raise ConfigError(
            f"{text!r} names the package {package!r}, which cannot be found; install it, or add"
            " its folder to pytest's 'pythonpath' setting"
        )
    candidates = [Path(os.path.normpath(Path(folder, inside))) for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def _package_folders(package: str) -> list[str]:
    """The folders of a package, found without importing it or its parents."""
    first, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return []
    name = first
    for part in rest:
        name += "." + part
        spec = importlib.machinery.PathFinder.find_spec(name, _locations(spec))
    return _locations(spec)


def _locations(spec: importlib.machinery.ModuleSpec | None) -> list[str]:
    return list(spec.submodule_search_locations or ()) if spec is not None else []
