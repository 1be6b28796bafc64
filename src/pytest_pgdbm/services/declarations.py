"""What `pgdbm_db(...)` at the level of a module declares, and which of it counts for a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.services.service import PathLike, Seed, Service

Scope = Literal["function", "class", "module", "package", "session"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Declaration:
    """One `pgdbm_db("users", …)` in a conftest or a test module.

    `name` is the service, None for the only known one. What is None was not given and comes from
    the declaration further out, the ini or discovery. `origin` and `line` are where it stands;
    relative paths start at the folder of `origin`. Raises ConfigError for wrong values.
    """

    name: str | None
    origin: Path
    line: int
    migrations: PathLike | None = None
    seed: Seed | Sequence[Seed] | None = None
    needs: str | Sequence[str] | None = None
    module: str | None = None
    migrations_table: str | None = None
    extensions: str | Sequence[str] | None = None
    scope: Scope = "function"

    def __post_init__(self) -> None:
        """Checks the values now, so that the error stands where the declaration does."""
        if self.name is not None:
            check_name(self.name, "pgdbm_db")
        if self.name is None and self.migrations is not None:
            raise ConfigError("pgdbm_db(migrations=...) needs the service's name before it")
        check_scope(self.scope)
        self._over(Service("migrations"))

    @property
    def place(self) -> str:
        """Where it stands, as `tests/conftest.py:12`."""
        return f"{self.origin}:{self.line}"

    def over(self, base: Service | None) -> Service | None:
        """The service that this declares over what is known of it, with absolute paths.

        With `migrations` it is a service of its own and takes nothing from `base`. None if
        neither says where the migrations are.
        """
        if self.migrations is not None:
            base = Service(self.migrations)
        return None if base is None else self._over(base).resolved(self.origin.parent)

    def plants(self, name: str, seed: Path) -> bool:
        """Whether it gives this service the seed in this file."""
        service = self.over(Service(".")) if self.name == name and self.seed is not None else None
        return service is not None and seed in service.seeds

    def _over(self, base: Service) -> Service:
        names = ("migrations", "seed", "needs", "module", "migrations_table", "extensions")
        given: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        return replace(base, **given)


def check_name(name: object, function: str) -> None:
    """Raises ConfigError if this, given to a function of the plugin, cannot be a service's name."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{function}({name!r}): a service's name is a text")


def check_scope(scope: object) -> None:
    """Raises ConfigError if this is not a scope of pytest's."""
    if scope not in get_args(Scope):
        raise ConfigError(f"scope={scope!r} is none of {', '.join(get_args(Scope))}")


def known_services(
    declarations: Iterable[Declaration], test_file: Path, found: Mapping[str, Service]
) -> dict[str, Service]:
    """The services that the tests of `test_file` know, as the nearest declarations define them.

    `found` are those of the ini and of discovery. A declaration counts in its own file, and one
    that is not in a test module counts in its folder and below, as fixtures of a conftest do.
    In one file the first declaration of a service defines it, one with `migrations` before one
    without. Raises ConfigError if one file gives a service two migrations folders.
    """
    services = dict(found)
    visible = [d for d in declarations if _counts_for(d, test_file)]
    for declaration in _definitions(sorted(visible, key=lambda d: _nearness(d, test_file))):
        assert declaration.name is not None
        service = declaration.over(services.get(declaration.name))
        if service is not None:
            services[declaration.name] = service
    return services


def _counts_for(declaration: Declaration, test_file: Path) -> bool:
    if declaration.origin == test_file:
        return True
    return not _is_test_module(declaration.origin) and test_file.parent.is_relative_to(declaration.origin.parent)


def _is_test_module(path: Path) -> bool:
    """As pytest's default `python_files`."""
    return path.name.startswith("test_") or path.name.endswith("_test.py")


def _nearness(declaration: Declaration, test_file: Path) -> tuple[bool, int, bool]:
    origin = declaration.origin
    return origin == test_file, len(origin.parts), origin.name == "conftest.py"


def _definitions(declarations: Iterable[Declaration]) -> list[Declaration]:
    """The declaration that defines each service in each file."""
    defining: dict[tuple[Path, str], Declaration] = {}
    for declaration in declarations:
        if declaration.name is None:
            continue
        key = (declaration.origin, declaration.name)
        first = defining.setdefault(key, declaration)
        if first.migrations is None and declaration.migrations is not None:
            defining[key] = declaration
        _check_agreement(defining[key], declaration)
    return list(defining.values())


def _check_agreement(first: Declaration, second: Declaration) -> None:
    if second.migrations is None or _folder(first) == _folder(second):
        return
    raise ConfigError(
        f"contradictory declarations of service {first.name!r} in {first.origin}:"
        f" migrations={str(first.migrations)!r} in line {first.line},"
        f" migrations={str(second.migrations)!r} in line {second.line};"
        " give one of them another name"
    )


def _folder(declaration: Declaration) -> object:
    service = declaration.over(None)
    return service and service.migrations
