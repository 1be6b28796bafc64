"""Which services a test knows, and what set is to be built for the one that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pytest_pgdbm.ground.errors import BuildError, ConfigError, UnknownService
from pytest_pgdbm.ground.names import real_name
from pytest_pgdbm.leasing.sets import build_order, component, needed, ties
from pytest_pgdbm.schemas.plan import Member, Plan
from pytest_pgdbm.services.declarations import Declaration, known_services
from pytest_pgdbm.services.discovery import Discovered, discover
from pytest_pgdbm.services.files import SqlFile, read_migrations, read_seed
from pytest_pgdbm.services.service import Service, is_path
from pytest_pgdbm.settings import Isolation
from pytest_pgdbm.sql.scan import extensions_created, schemas_named


class Asked(NamedTuple):
    """Services that were asked for: the plan of their set, and the services that the test knows besides."""

    names: tuple[str, ...]
    plan: Plan
    others: tuple[str, ...]


@dataclass
class Library:
    """Migration files and discoveries, read once in a run; so that what a run tests is one state of the files."""

    _files: dict[tuple[str, Path], tuple[SqlFile, ...]] = field(default_factory=dict)
    _seeds: dict[Path, SqlFile] = field(default_factory=dict)
    _found: dict[tuple[Path, Path], Discovered] = field(default_factory=dict)
    _extensions: dict[SqlFile, frozenset[str]] = field(default_factory=dict)
    _schemas: dict[SqlFile, Mapping[str, int]] = field(default_factory=dict)

    def files(self, name: str, service: Service) -> tuple[SqlFile, ...]:
        """The service's migration files. Raises MigrationsError."""
        key = (name, Path(service.migrations))
        if key not in self._files:
            self._files[key] = read_migrations(key[1], name)
        return self._files[key]

    def seed(self, path: Path, service: str, origin: Callable[[], str]) -> SqlFile:
        """The SQL file of a seed; `origin` tells an error where it was asked for. Raises SeedError."""
        if path not in self._seeds:
            self._seeds[path] = read_seed(path, service, origin)
        return self._seeds[path]

    def found(self, folder: Path, rootdir: Path) -> Discovered:
        """What lies in the nearest folder `migrations`, from this folder upwards."""
        key = (folder, rootdir)
        if key not in self._found:
            self._found[key] = discover(folder, rootdir)
        return self._found[key]

    def extensions(self, files: Iterable[SqlFile]) -> frozenset[str]:
        """The extensions that these files make."""
        return frozenset().union(*(self._made(file) for file in files))

    def schemas(self, file: SqlFile) -> Mapping[str, int]:
        """The schemas that a file names itself, each with the line where it does so first."""
        if file not in self._schemas:
            lines: dict[str, int] = {}
            for named in schemas_named(file.text):
                lines.setdefault(named.schema, named.line)
            self._schemas[file] = lines
        return self._schemas[file]

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
        self._marked = {name: Service(".", seed=seed).resolved(test_file.parent).seeds for name, seed in seeds.items()}
        self._services = _with_seeds(services, self._marked)
        self._declared = dict.fromkeys(declarations)
        self._asked: dict[object, Asked] = {}

    def ask(self, asked: str | Declaration | None, isolation: Isolation = "schema") -> Asked:
        """The set that a service belongs to: the named one, the declared one, or for None the only one.

        It is what is tied to the service, and in a database of its own all services that the test knows: whatever it
        asks for is then in one database, as in production. Raises UnknownService, ConfigError, MigrationsError.
        """
        if isinstance(asked, Declaration) and asked not in self._declared:
            return self._plan(asked, isolation)  # made for one call
        key = (asked, isolation)
        if key not in self._asked:
            self._asked[key] = self._plan(asked, isolation)
        return self._asked[key]

    def ask_database(self, names: Sequence[str]) -> Asked:
        """The set of these services and what they need, or of all services for none, in a database of its own.

        Raises UnknownService, ConfigError, MigrationsError.
        """
        key = tuple(names)
        if key not in self._asked:
            for name in names:
                self._check(name, self._services)
            self._asked[key] = self._database(key or self._all(self._services), self._services)
        return self._asked[key]

    def extensions(self) -> frozenset[str]:
        """The extensions that the known services need, as far as their files can be read."""
        needed: set[str] = set()
        for name, service in self._services.items():
            needed.update(service.extensions)
            needed |= self._library.extensions(self._readable_files(name, service))
        return frozenset(needed)

    def _plan(self, asked: str | Declaration | None, isolation: Isolation) -> Asked:
        declaration = asked if isinstance(asked, Declaration) else None
        name = asked.name if isinstance(asked, Declaration) else asked
        if name is None:
            name = self._only()
        services = self._with(name, declaration)
        self._check(name, services)
        if isolation == "database":
            return self._database({*self._all(services), name}, services)._replace(names=(name,))
        tied = self._ties(services)
        members = self._members(build_order(component(name, tied), tied), services)
        others = set(services) - {member.name for member in members}
        return Asked((name,), Plan(_key(members), members), tuple(sorted(others)))

    def _database(self, names: Iterable[str], services: Mapping[str, Service]) -> Asked:
        tied = self._ties(services)
        written = {name: {**self._written(name, services), **needs} for name, needs in tied.items()}
        together = needed(names, written)
        try:
            order = build_order(together, written)
        except ConfigError:
            order = build_order(together, tied)  # bodies of functions may name each other's tables
        members = self._members(order, services)
        _check_schemas(members)
        plan = Plan(("database", *_key(members)), members, "database")
        return Asked(plan.names, plan, ())

    def _members(self, names: Iterable[str], services: Mapping[str, Service]) -> tuple[Member, ...]:
        return tuple(self._member(each, services[each]) for each in names)

    def _written(self, name: str, services: Mapping[str, Service]) -> dict[str, str]:
        """The services whose real names the migrations of this one write out, and where."""
        by_schema = {real_name(other): other for other in services if other != name}
        found: dict[str, str] = {}
        for file in self._readable_files(name, services[name]):
            for schema, line in self._library.schemas(file).items():
                if schema in by_schema:
                    found.setdefault(by_schema[schema], f"{file.path}:{line}")
        return found

    def _check(self, name: str, services: Mapping[str, Service]) -> None:
        """Whether there is such a service, with files that can be read."""
        if name not in services:
            raise UnknownService(name, services, [str(place) for place in self._found.looked_in])
        self._files(name, services[name])  # what is wrong with its own files comes first

    def _all(self, services: Mapping[str, Service]) -> list[str]:
        """The services whose files can be read."""
        return [name for name, service in services.items() if self._readable_files(name, service)]

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

    def _ties(self, services: Mapping[str, Service]) -> dict[str, dict[str, str]]:
        """What each service needs: nothing, where its files cannot be read and no set can have it."""
        found = ties(services, self._texts(services))
        return {name: needs if self._readable_files(name, services[name]) else {} for name, needs in found.items()}

    def _texts(self, services: Mapping[str, Service]) -> Any:
        names = {id(service): name for name, service in services.items()}

        def texts(service: Service) -> Iterator[tuple[str, str]]:
            name = names[id(service)]
            migrations = self._readable_files(name, service)
            for file in (*migrations, *(self._seeds(name, service) if migrations else ())):
                yield str(file.path), file.text

        return texts

    def _readable_files(self, name: str, service: Service) -> tuple[SqlFile, ...]:
        # What cannot be read is the affair of who asks for that service, not of every other's tests.
        try:
            return self._files(name, service)
        except BuildError:
            return ()

    def _files(self, name: str, service: Service) -> tuple[SqlFile, ...]:
        """The service's migrations. Raises MigrationsError, and SeedError if it is a seed that cannot be read."""
        files = self._library.files(name, service)
        self._seeds(name, service)
        return files

    def _seeds(self, name: str, service: Service) -> list[SqlFile]:
        paths = (Path(seed) for seed in service.seeds if is_path(seed))
        return [self._library.seed(path, name, partial(self._origin, name, path)) for path in paths]

    def _origin(self, name: str, seed: Path) -> str:
        """Where a service is given this seed, as an error says it."""
        if seed in self._marked.get(name, ()):
            return "given by the marker pgdbm(seed=…)"
        places = [each.place for each in self._declared if each.plants(name, seed)]
        return f"declared at {places[-1]}" if places else ""

    def _member(self, name: str, service: Service) -> Member:
        files = self._files(name, service)
        return Member(name, service, files, frozenset(service.extensions) | self._library.extensions(files))


def _key(members: Iterable[Member]) -> tuple[object, ...]:
    return tuple((member.name, member.service) for member in members)


def _check_schemas(members: Iterable[Member]) -> None:
    """Whether each of these services has a schema to itself where schemas have real names."""
    taken: dict[str, str] = {}
    for member in members:
        other = taken.setdefault(real_name(member.name), member.name)
        if other != member.name:
            raise ConfigError(
                f"services {other!r} and {member.name!r} cannot be in one database: both would be in the schema"
                f" {real_name(member.name)!r}; give one of them another name"
            )


def _with_seeds(services: Mapping[str, Service], seeds: Mapping[str, Any]) -> dict[str, Service]:
    changed = dict(services)
    for name, seed in seeds.items():
        if name not in services:
            raise UnknownService(name, services, ["the marker pgdbm(seed=…)"])
        changed[name] = replace(services[name], seed=seed)
    return changed
