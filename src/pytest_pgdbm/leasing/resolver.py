"""Which services a test knows, and what set is to be built for the one that it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_pgdbm.ground.errors import ConfigError, MigrationsError, UnknownService
from pytest_pgdbm.leasing.sets import build_order, component, ties
from pytest_pgdbm.schemas.plan import Member, Plan
from pytest_pgdbm.services.declarations import Declaration, known_services
from pytest_pgdbm.services.discovery import Discovered, discover
from pytest_pgdbm.services.files import SqlFile, read_migrations, read_seed
from pytest_pgdbm.services.service import Service, is_path
from pytest_pgdbm.sql.scan import extensions_created


@dataclass(frozen=True)
class Asked:
    """A service that was asked for: the plan of its set, and the services that the test knows besides."""

    name: str
    plan: Plan
    others: tuple[str, ...]


@dataclass
class Library:
    """Migration files and discoveries, read once in a run; so that what a run tests is one state of the files."""

    _files: dict[tuple[str, Path], tuple[SqlFile, ...]] = field(default_factory=dict)
    _found: dict[tuple[Path, Path], Discovered] = field(default_factory=dict)
    _extensions: dict[SqlFile, frozenset[str]] = field(default_factory=dict)

    def files(self, name: str, service: Service) -> tuple[SqlFile, ...]:
        """The service's migration files. Raises MigrationsError."""
        key = (name, Path(service.migrations))
        if key not in self._files:
            self._files[key] = read_migrations(key[1], name)
        return self._files[key]

    def found(self, folder: Path, rootdir: Path) -> Discovered:
        """What lies in the nearest folder `migrations`, from this folder upwards."""
        key = (folder, rootdir)
        if key not in self._found:
            self._found[key] = discover(folder, rootdir)
        return self._found[key]

    def extensions(self, files: Iterable[SqlFile]) -> frozenset[str]:
        """The extensions that these files make."""
        return frozenset().union(*(self._made(file) for file in files))

    def _made(self, file: SqlFile) -> frozenset[str]:
        if file not in self._extensions:
            self._extensions[file] = frozenset(each.name for each in extensions_created(file.text))
        return self._extensions[file]


class Resolver:
    """Answers for one place in the tests.

    `offered` is what the fixture `pgdbm_services` gave, `declarations` what conftests and the test's module declare,
    `seeds` what the test's marker says, by service.
    """

    def __init__(
        self,
        library: Library,
        *,
        test_file: Path,
        rootdir: Path,
        offered: Mapping[str, Service],
        declarations: Sequence[Declaration],
        seeds: Mapping[str, Any],
    ) -> None:
        self._library = library
        self._found = library.found(test_file.parent, rootdir)
        at_root = library.found(rootdir, rootdir).services
        # What the fixture merely found at the root gives way to a folder that is nearer to the test.
        given = {n: s.resolved(rootdir) for n, s in offered.items() if at_root.get(n) != s}
        services = known_services(declarations, test_file, {**self._found.services, **given})
        self._marked = {name: Service(".", seed=seed).resolved(test_file.parent).seed for name, seed in seeds.items()}
        self._services = _with_seeds(services, self._marked)
        self._declared = frozenset(declarations)
        self._asked: dict[str | Declaration | None, Asked] = {}

    def ask(self, asked: str | Declaration | None) -> Asked:
        """The set that a service belongs to: the named one, the declared one, or for None the only one.

        Raises UnknownService, ConfigError, MigrationsError.
        """
        if isinstance(asked, Declaration) and asked not in self._declared:
            return self._plan(asked)  # made for one call
        if asked not in self._asked:
            self._asked[asked] = self._plan(asked)
        return self._asked[asked]

    def extensions(self) -> frozenset[str]:
        """The extensions that the known services need, as far as their files can be read."""
        needed: set[str] = set()
        for name, service in self._services.items():
            needed.update(service.extensions)
            needed |= self._library.extensions(self._readable_files(name, service))
        return frozenset(needed)

    def _plan(self, asked: str | Declaration | None) -> Asked:
        declaration = asked if isinstance(asked, Declaration) else None
        name = asked.name if isinstance(asked, Declaration) else asked
        if name is None:
            name = self._only()
        services = self._with(name, declaration)
        if name not in services:
            raise UnknownService(name, services, [str(place) for place in self._found.looked_in])
        self._library.files(name, services[name])  # what is wrong with its own files comes first
        tied = ties(services, self._texts(services))
        names = component(name, tied)
        members = tuple(self._member(each, services[each]) for each in build_order(names, tied))
        key = tuple((member.name, member.service) for member in members)
        return Asked(name, Plan(key, members), tuple(sorted(set(services) - set(names))))

    def _only(self) -> str:
        if len(self._services) != 1:
            known = ", ".join(sorted(self._services)) or "none"
            raise ConfigError(f"pgdbm_db() without a name needs exactly one known service; known: {known}")
        return next(iter(self._services))

    def _with(self, name: str, declaration: Declaration | None) -> Mapping[str, Service]:
        service = declaration.over(self._services.get(name)) if declaration else None
        if service is None:
            return self._services
        if declaration in self._declared and name in self._marked:
            service = replace(service, seed=self._marked[name])  # the marker is nearer than the conftest
        return {**self._services, name: service}

    def _texts(self, services: Mapping[str, Service]) -> Any:
        names = {id(service): name for name, service in services.items()}

        def texts(service: Service) -> Iterator[tuple[str, str]]:
            for file in self._readable_files(names[id(service)], service):
                yield str(file.path), file.text
            for seed in service.seeds:
                if is_path(seed):
                    yield str(seed), read_seed(Path(seed)).text

        return texts

    def _readable_files(self, name: str, service: Service) -> tuple[SqlFile, ...]:
        # A folder that cannot be read is the affair of who asks for that service, not of every other's tests.
        try:
            return self._library.files(name, service)
        except MigrationsError:
            return ()

    def _member(self, name: str, service: Service) -> Member:
        files = self._library.files(name, service)
        return Member(name, service, files, frozenset(service.extensions) | self._library.extensions(files))


def _with_seeds(services: Mapping[str, Service], seeds: Mapping[str, Any]) -> dict[str, Service]:
    changed = dict(services)
    for name, seed in seeds.items():
        if name not in services:
            raise UnknownService(name, services, ["the marker pgdbm(seed=…)"])
        changed[name] = replace(services[name], seed=seed)
    return changed
