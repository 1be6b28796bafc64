"""The fixtures, and `pgdbm_db(...)` at the level of a conftest or test module, which makes one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_pgdbm.ground.errors import ConfigError, PgdbmError, plainly

if TYPE_CHECKING:
    from pytest_pgdbm.connections.path import SearchPath
    from pytest_pgdbm.connections.pools import SharedPool
    from pytest_pgdbm.ground.endpoint import PgdbmServer
    from pytest_pgdbm.leasing.factory import DatabaseFactory, Lease
    from pytest_pgdbm.leasing.resolver import Library, Resolver
    from pytest_pgdbm.leasing.tenants import Tenant
    from pytest_pgdbm.leasing.whole import WholeDatabaseFactory
    from pytest_pgdbm.services.declarations import Declaration, Scope
    from pytest_pgdbm.services.service import PathLike, Seed, Service
    from pytest_pgdbm.session import Session

T = TypeVar("T")

SESSION = pytest.StashKey["Session"]()
ITEMS = pytest.StashKey["Sequence[pytest.Item]"]()
FOUND = pytest.StashKey["dict[str, Service]"]()
_LIBRARY = pytest.StashKey["Library"]()
_RESOLVERS = pytest.StashKey["dict[object, Resolver]"]()
_TENANTS = pytest.StashKey["list[Tenant]"]()
_MARK = "__pgdbm_declarations__"


def pgdbm_db(
    *services: str,
    migrations: PathLike | None = None,
    seed: Seed | Sequence[Seed] | None = None,
    needs: str | Sequence[str] | None = None,
    module: str | None = None,
    migrations_table: str | None = None,
    extensions: str | Sequence[str] | None = None,
    scope: Scope = "function",
) -> Any:
    """Declares a service for this conftest's tests, and makes the fixture that gives its `Database`.

    In a conftest or test module: `users_db = pgdbm_db("users")`. With several names the fixture gives a tuple; without
    a name, the only known service. Paths are relative to the calling file. What is not given comes from a
    declaration further out, the ini or discovery. With a `scope` wider than `function` the tests of that scope
    share one schema and see each other's rows.

    Raises ConfigError for values that cannot be right.
    """
    __tracebackhide__ = True
    from pytest_pgdbm.services.declarations import Declaration

    caller = sys._getframe(1)
    given: dict[str, Any] = {
        "migrations": migrations,
        "seed": seed,
        "needs": needs,
        "module": module,
        "migrations_table": migrations_table,
        "extensions": extensions,
    }
    if len(services) > 1 and any(value is not None for value in given.values()):
        raise ConfigError("pgdbm_db() with several services takes no other arguments; declare each by itself")
    origin = Path(caller.f_code.co_filename)
    try:
        declarations = [
            Declaration(name=name, origin=origin, line=caller.f_lineno, scope=scope, **given)
            for name in services or (None,)
        ]
    except ConfigError as error:
        raise plainly(error) from None
    made = _fixture(lambda factory: factory.ask(declarations, own=True), scope, _describe(declarations))
    setattr(made, _MARK, tuple(declarations))
    return made


def pgdbm_database(*services: str, scope: Scope = "function") -> Any:
    """Makes the fixture that gives a `WholeDatabase`: these services in a database of their own, by their real names.

    In a conftest or test module: `shop_db = pgdbm_database("users", "orders")`; without names, all services that the
    tests know. Services are declared by `pgdbm_db`, by the ini or by their folders. With a `scope` wider than
    `function` the tests of that scope share one database and see each other's rows.

    Raises ConfigError for values that cannot be right.
    """
    __tracebackhide__ = True
    from pytest_pgdbm.services.declarations import check_name, check_scope

    try:
        for name in services:
            check_name(name, "pgdbm_database")
        check_scope(scope)
    except ConfigError as error:
        raise plainly(error) from None
    named = " and ".join(map(repr, services)) or "all services"
    text = f"Whole database of {named}, freshly migrated for this {scope}."

    def lease(factory: DatabaseFactory) -> Lease[Any]:
        from pytest_pgdbm.leasing.whole import WholeDatabase

        return factory.ask_database(services, WholeDatabase, own=True)

    return _fixture(lease, scope, text)


def _fixture(lease: Callable[[DatabaseFactory], Lease[Any]], scope: Scope, text: str) -> Any:
    def leased(factory: DatabaseFactory) -> Any:
        try:
            return lease(factory).get()
        except PgdbmError as error:
            raise _failed(error) from None

    def database(pgdbm_db: DatabaseFactory) -> Any:
        return leased(pgdbm_db)

    def wide(request: pytest.FixtureRequest, **given: DatabaseFactory) -> Any:
        (factory,) = given.values()
        factory.tenant.fixtures.add(request.fixturename or "")
        return leased(factory)

    if scope != "function":
        # pytest reads from the signature what a fixture needs; which factory that is depends on the scope.
        names = ("request", f"_pgdbm_{scope}")
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        wide.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made: Callable[..., Any] = database if scope == "function" else wide
    made.__doc__ = text
    return pytest.fixture(scope=scope)(made)


def _describe(declarations: Sequence[Declaration]) -> str:
    names = [f"{d.name!r}" if d.name else "the only service" for d in declarations]
    text = f"Database of {' and '.join(names)} on a freshly migrated schema of this {declarations[0].scope}."
    folders = [str(d.migrations or f"migrations/{d.name}") for d in declarations if d.migrations or d.name]
    # Where the ini, an outer conftest or the tests' own folder has others is known with the tests only.
    elsewhere = "" if declarations[0].migrations else " or as declared elsewhere"
    return text + (f" Migrations: {', '.join(folders)}{elsewhere}." if folders else "")


@pytest.fixture(scope="session")
def pgdbm_server(_pgdbm_run: Session) -> PgdbmServer:
    """The run's Postgres server: kind, version, host, port, user, database, url; asking for it starts it."""
    return _told(lambda: _pgdbm_run.server)


@pytest.fixture(scope="session")
def pgdbm_url(pgdbm_server: PgdbmServer) -> str:
    """URL of this worker's database, for code that connects by itself; its repr hides the password."""
    return pgdbm_server.url


@pytest.fixture(scope="session")
def pgdbm_pool(_pgdbm_run: Session) -> SharedPool:
    """The run's asyncpg.Pool: one object for all services, usable in any event loop."""
    return _told(lambda: _pgdbm_run.pool)


@pytest.fixture(scope="session")
def pgdbm_pool_options() -> Mapping[str, Any]:
    """Fields of pgdbm.DatabaseConfig for the pool, as the application sets them; override it to say which."""
    return {}


# pytest makes an object for each `request` that a test's fixtures ask for, be they of the session and long there: so
# none is asked for where the configuration will do, and nothing by getfixturevalue().
@pytest.fixture(scope="session")
def pgdbm_services(pytestconfig: pytest.Config) -> Mapping[str, Service]:
    """Services known by the ini and by folders migrations/<service>; override it to return more."""
    root, configured = pytestconfig.rootpath, pytestconfig.stash[FOUND]
    return {**_library(pytestconfig).found(root, root).services, **configured}


@pytest.fixture(scope="session")
def _pgdbm_run(
    pytestconfig: pytest.Config, pgdbm_pool_options: Mapping[str, Any], pgdbm_services: Mapping[str, Service]
) -> Session:
    session = pytestconfig.stash[SESSION]
    session.pool_options = pgdbm_pool_options
    session.needed_extensions = lambda: _known_extensions(pytestconfig, pgdbm_services)
    return session


@pytest.fixture(name="pgdbm_db")
def pgdbm_db_of_a_test(
    request: pytest.FixtureRequest, _pgdbm_run: Session, pgdbm_services: Mapping[str, Service]
) -> DatabaseFactory:
    """Callable that leases services: await pgdbm_db("users"), or pgdbm_db("users").get() without a loop."""
    return _factory(request, _pgdbm_run, pgdbm_services, lambda: _hosts(request))


@pytest.fixture(name="pgdbm_database")
def pgdbm_database_of_a_test(pgdbm_db: DatabaseFactory) -> WholeDatabaseFactory:
    """Callable that leases whole databases: await pgdbm_database("users", "orders"), or .get() without a loop."""
    from pytest_pgdbm.leasing.whole import WholeDatabaseFactory

    return WholeDatabaseFactory(pgdbm_db)


def _wide(scope: Scope) -> Any:
    def factory(
        request: pytest.FixtureRequest, _pgdbm_run: Session, pgdbm_services: Mapping[str, Service]
    ) -> DatabaseFactory:
        return _factory(request, _pgdbm_run, pgdbm_services, tuple)

    return pytest.fixture(scope=scope, name=f"_pgdbm_{scope}")(factory)


_pgdbm_class = _wide("class")
_pgdbm_module = _wide("module")
_pgdbm_package = _wide("package")
_pgdbm_session = _wide("session")


def _factory(
    request: pytest.FixtureRequest,
    session: Session,
    services: Mapping[str, Service],
    hosts: Callable[[], Iterable[Tenant]],
) -> DatabaseFactory:
    from pytest_pgdbm.leasing.factory import DatabaseFactory
    from pytest_pgdbm.leasing.tenants import Tenant

    node = request.node
    marked = _marked(node)
    tenant = Tenant(
        node.nodeid or "the session",
        _path(marked),
        reuse=marked.get("reuse", session.settings.reuse.value) == "on",
        isolation=marked.get("isolation", session.settings.isolation.value),
    )
    node.stash.setdefault(_TENANTS, []).append(tenant)
    request.addfinalizer(lambda: session.revoke(tenant))
    return DatabaseFactory(session, tenant, _told(lambda: _resolver(node, services, marked.get("seed"))), hosts)


def _hosts(request: pytest.FixtureRequest) -> Iterable[Tenant]:
    """Tenants of wider scopes whose fixtures the test itself uses."""
    for node in request.node.listchain():
        for tenant in node.stash.get(_TENANTS, ()):
            if not tenant.term.ended and tenant.fixtures.intersection(request.fixturenames):
                yield tenant


def _resolver(node: Any, services: Mapping[str, Service], seeds: Mapping[str, Any] | None) -> Resolver:
    config: pytest.Config = node.config
    test_file: Path = node.path if node.path.suffix else node.path / "conftest.py"
    if seeds:
        return _new_resolver(config, services, test_file, node.getparent(pytest.Module), seeds)
    known = config.stash.setdefault(_RESOLVERS, {})
    key = (test_file, id(services))
    if key not in known:
        known[key] = _new_resolver(config, services, test_file, node.getparent(pytest.Module), {})
    return known[key]


def _new_resolver(
    config: pytest.Config,
    services: Mapping[str, Service],
    test_file: Path,
    module: pytest.Module | None,
    seeds: Mapping[str, Any],
) -> Resolver:
    from pytest_pgdbm.leasing.resolver import Resolver

    return Resolver(
        _library(config),
        test_file=test_file,
        rootdir=config.rootpath,
        offered=services,
        declarations=_declarations(config, module),
        seeds=seeds,
    )


def _known_extensions(config: pytest.Config, services: Mapping[str, Service]) -> set[str]:
    """What the services of all tests of this run need, so that the server has it whichever test starts it."""
    modules = {item.path: item.getparent(pytest.Module) for item in config.stash[ITEMS]}
    needed: set[str] = set()
    for path, module in modules.items():
        needed |= _new_resolver(config, services, path, module, {}).extensions()
    return needed


def _declarations(config: pytest.Config, module: pytest.Module | None) -> list[Declaration]:
    plugins = config.pluginmanager.get_plugins()
    modules = [plugin for plugin in plugins if getattr(plugin, "__file__", None)]
    if module is not None:
        modules.append(module.obj)
    found: dict[Declaration, None] = {}
    for each in modules:
        for value in list(vars(each).values()):
            found.update(dict.fromkeys(getattr(value, "__dict__", {}).get(_MARK, ())))
    return sorted(found, key=lambda declaration: (str(declaration.origin), declaration.line))


def _marked(node: Any) -> dict[str, Any]:
    """What the markers say, the nearest first; of each service the seeds that its nearest one gives."""
    marked: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("pgdbm"))):
        seeds = {**marked.get("seed", {}), **marker.kwargs.get("seed", {})}
        marked.update(marker.kwargs, seed=seeds)
    return marked


def _path(marked: Mapping[str, Any]) -> SearchPath | None:
    if "search_path" not in marked:
        return None
    from pytest_pgdbm.connections.path import SearchPath

    return SearchPath.parse(marked["search_path"])


def _library(config: pytest.Config) -> Library:
    from pytest_pgdbm.leasing.resolver import Library

    return config.stash.setdefault(_LIBRARY, Library())


def _told(make: Callable[[], T]) -> T:
    """What `make` returns; its error as a message without a traceback of the plugin."""
    try:
        return make()
    except PgdbmError as error:
        raise _failed(error) from None


def _failed(error: PgdbmError) -> BaseException:
    return pytest.fail.Exception(str(error), pytrace=False)
