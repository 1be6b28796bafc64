"""Services that need no declaration in Python: `migrations` folders, and lines in the ini file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.services.files import folders_with_sql, sql_files
from pytest_pgdbm.services.service import Service

FOLDER = "migrations"


@dataclass(frozen=True)
class Discovered:
    """The services of the nearest `migrations` folder; `folder` is None where there is none.

    `looked_in` has each place where the folder could have been, nearest first.
    """

    services: dict[str, Service] = field(default_factory=dict)
    folder: Path | None = None
    looked_in: tuple[Path, ...] = ()


def discover(start: Path, rootdir: Path) -> Discovered:
    """The services of the nearest folder `migrations` from `start` up to `rootdir`.

    Its sub-folders with .sql files are services of their names. Without sub-folders its own files
    are one service, called as the folder that holds `migrations`. Raises ConfigError if it has
    both. Folders of that name without .sql files are passed by.
    """
    looked_in = []
    for folder in _upwards(start, rootdir):
        candidate = folder / FOLDER
        looked_in.append(candidate)
        services = _services_in(candidate)
        if services:
            return Discovered(services, candidate, tuple(looked_in))
    return Discovered(looked_in=tuple(looked_in))


def _upwards(start: Path, rootdir: Path) -> Iterator[Path]:
    """`start` and its parents up to `rootdir`; both if one does not hold the other."""
    yield start
    if not start.is_relative_to(rootdir):
        yield rootdir
        return
    while start != rootdir:
        start = start.parent
        yield start


def _services_in(folder: Path) -> dict[str, Service]:
    if not folder.is_dir():
        return {}
    flat, below = sql_files(folder), folders_with_sql(folder)
    if flat and below:
        raise ConfigError(
            f"{folder} holds .sql files ({min(flat).name}) and folders with .sql files"
            f" ({', '.join(f.name for f in below)}): give every service a folder of its own in it,"
            " or list the services in the ini setting pgdbm_services"
        )
    if flat:
        return {folder.parent.name: Service(folder)}
    return {f.name: Service(f) for f in below}


def from_ini(lines: Iterable[str], base: Path) -> dict[str, Service]:
    """The services of the ini setting `pgdbm_services`, one `name = path` to a line.

    Paths are relative to `base`, the folder of the ini file, or `package:folder`. Raises
    ConfigError, quoting the line, if one is malformed, named twice or its folder is missing.
    """
    services: dict[str, Service] = {}
    for line in filter(str.strip, lines):
        name, service = _from_line(line, base)
        if name in services:
            raise _wrong(line, f"the service {name!r} is listed before; remove one of the lines")
        services[name] = service
    return services


def _from_line(line: str, base: Path) -> tuple[str, Service]:
    name, equals, path = (part.strip() for part in line.partition("="))
    if not equals:
        raise _wrong(line, "there is no '='; write 'name = path/to/its/migrations'")
    if not name or not path:
        missing = "path" if name else "name"
        raise _wrong(line, f"the {missing} is missing; write 'name = path/to/its/migrations'")
    service = Service(path).resolved(base)
    if not Path(service.migrations).is_dir():
        raise _wrong(line, f"there is no folder {service.migrations}")
    return name, service


def _wrong(line: str, why: str) -> ConfigError:
    return ConfigError(f"pgdbm_services, line {line.strip()!r}: {why}")
