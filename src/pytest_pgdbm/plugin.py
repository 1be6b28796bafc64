"""The plugin's table of contents: its options, its header, and hooks that hand over to the session."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pgdbm import report, settings
from pytest_pgdbm.fixtures import FOUND, ITEMS, SESSION
from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.session import Session

if TYPE_CHECKING:
    from pytest_pgdbm.ground.records import Run
    from pytest_pgdbm.leasing.leaks import Leak
    from pytest_pgdbm.services.service import Service

_LOOKING = pytest.StashKey[threading.Thread]()
_KEPT = pytest.StashKey["list[Leak]"]()
_WORKERS = pytest.StashKey[list[report.Told]]()
_MARKER = (
    "pgdbm(seed={service: seeds}, search_path=, isolation=, reuse=): choices of pytest-pgdbm for a test; seed replaces"
    " the declared seeds of the named services"
)
_MARKER_WORDS = ("seed", "search_path", "isolation", "reuse")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each setting is an option and an ini key, from one table; the services are ini only."""
    group = parser.getgroup("pgdbm", "Postgres for pgdbm services")
    for option in settings.OPTIONS:
        metavar = option.metavar or "|".join(option.choices)
        group.addoption(option.flag, dest=option.dest, default=None, metavar=metavar, help=option.help)
        parser.addini(option.dest, option.help, type=option.ini_type, default=None)
    group.addoption(
        "--pgdbm-kept", choices=("list", "stop"), help="show the servers that --pgdbm-keep-alive has kept, or stop them"
    )
    group.addoption(
        "--pgdbm-doctor", action="store_true", help="show servers, rights, settings, caches and what runs have left"
    )
    group.addoption("--pgdbm-sweep", action="store_true", help="drop what dead runs have left")
    services_help = "services, a line each: name = folder of its migrations"
    parser.addini("pgdbm_services", services_help, type="linelist", default=[])


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Shows or ends what there is beside a run, and runs no test."""
    if config.option.pgdbm_kept is not None:
        return _kept(config)
    if config.option.pgdbm_doctor or config.option.pgdbm_sweep:
        return _doctor(config)
    return None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Settles what is to be known before collection; starts nothing."""
    config.addinivalue_line("markers", _MARKER)
    if config.option.help:
        return
    try:
        config.stash[SESSION] = Session(_settings(config), partial(_run, config))
        config.stash[FOUND] = _services(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[SESSION].debugged = bool(config.option.usepdb or config.option.trace)
    config.stash[_KEPT], config.stash[_WORKERS] = [], []
    from pytest_pgdbm import fixtures

    config.pluginmanager.register(fixtures, "pgdbm-fixtures")
    if hasattr(config, "workerinput"):
        return
    config.stash[_LOOKING] = report.look_ahead(config.stash[SESSION].settings)
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Controller(config), "pgdbm-xdist")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Which server, its version and why; pgdbm's version; what differs from the defaults and who said so."""
    if _LOOKING not in config.stash:
        return []  # a worker of xdist's, whose header nobody sees
    config.stash[_LOOKING].join()
    return report.header(config.stash[SESSION].settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A misspelt word in the marker is an error before any test runs."""
    for item in items:
        for marker in item.iter_markers("pgdbm"):
            if wrong := report.marker_error(item.nodeid, marker.args, marker.kwargs, _MARKER_WORDS):
                raise pytest.UsageError(wrong)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Which tests there are: what their services need decides which server is taken."""
    session.config.stash[ITEMS] = session.items


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """An asynchronous test that no plugin runs gets the reason in our words, if it asks for our fixtures."""
    try:
        return (yield)
    except pytest.fail.Exception as error:
        hint = report.async_hint(str(error), pyfuncitem.fixturenames)
        if hint is None:
            raise
        raise pytest.fail.Exception(hint, pytrace=False) from None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What connections are taken for from now on."""
    item.config.stash[SESSION].begin_test(item.nodeid)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """After everything of the test, its event loop included: what was given back is dropped."""
    try:
        return (yield)
    finally:
        _tell(item.session, item.config.stash[SESSION].settle(), item)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The same once more, for what an interrupted test left to the end; a worker reports to the controller."""
    config = session.config
    if SESSION not in config.stash:
        return
    _tell(session, [*config.stash[SESSION].settle(), *config.stash[SESSION].clear()], None)
    if hasattr(config, "workeroutput"):
        config.workeroutput["pgdbm"] = _told(config)


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Where a test stands still, how to look into its database."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        for command in config.stash[SESSION].psql():
            reporter.write_line(f"pgdbm: {command}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Why there was no server or another one, what was kept; with -v the server's version and what was built anew."""
    verbose = config.get_verbosity() > 0
    lines = report.summary([_told(config), *config.stash[_WORKERS]], verbose=verbose)
    if lines:
        terminalreporter.section("pgdbm")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves the run; the last of its processes waits for the server's end."""
    if SESSION in config.stash:
        config.stash[SESSION].close()


class _Controller:
    """What the plugin does in xdist's controller; registered only there."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_configure_node(self, node: Any) -> None:
        """Tells a worker which run it belongs to, and on this host where the run meets."""
        from pytest_pgdbm.ground.records import Process

        run = self._config.stash[SESSION].run
        here = bool(node.gateway.spec.popen)
        me = Process.this()
        node.workerinput["pgdbm"] = {
            "run": run.id,
            "folder": str(run.folder) if here else None,
            "controller": [me.pid, me.started] if here else None,
        }

    def pytest_testnodedown(self, node: Any) -> None:
        """Keeps what a worker reported at its end."""
        told = getattr(node, "workeroutput", {}).get("pgdbm")
        if told:
            self._config.stash[_WORKERS].append(told)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """The controller holds the run's server while a worker may be replaced; now it leaves."""
        run = config.stash[SESSION].run
        if run.folder.exists():
            from pytest_pgdbm import keeper

            keeper.leave_run(run)


def _kept(config: pytest.Config) -> int:
    from pytest_pgdbm.servers import keeping

    told = keeping.stop(os.environ) if config.option.pgdbm_kept == "stop" else keeping.listed(os.environ)
    print("\n".join(told))
    return 0


def _doctor(config: pytest.Config) -> int:
    from pytest_pgdbm import doctor

    try:
        chosen = _settings(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None
    told, well = doctor.sweep(chosen) if config.option.pgdbm_sweep else doctor.examine(chosen)
    print("\n".join(told))
    return 0 if well else 1


def _told(config: pytest.Config) -> report.Told:
    session = config.stash[SESSION]
    return {
        "failure": session.failure,
        "version": session.version,
        "instead": session.instead,
        "kept": [leak.message for leak in config.stash[_KEPT] if leak.kept not in session.gone],
        "dropped": session.dropped,
        "waits": session.waits,
    }


def _settings(config: pytest.Config) -> settings.Settings:
    return settings.resolve(
        cli=lambda stem: config.getoption("pgdbm_" + stem.replace("-", "_")),
        environ=os.environ,
        ini=lambda stem: config.getini("pgdbm_" + stem.replace("-", "_")),
        ini_name=config.inipath.name if config.inipath else "ini",
        ini_dir=_ini_dir(config),
    )


def _services(config: pytest.Config) -> dict[str, Service]:
    lines = config.getini("pgdbm_services")
    if not lines:
        return {}
    from pytest_pgdbm.services.discovery import from_ini

    return from_ini(lines, _ini_dir(config))


def _ini_dir(config: pytest.Config) -> Path:
    return config.inipath.parent if config.inipath else config.rootpath


def _run(config: pytest.Config) -> Run:
    from pytest_pgdbm.ground.names import new_run
    from pytest_pgdbm.ground.records import Process, Run

    told = getattr(config, "workerinput", {}).get("pgdbm")
    if told is None:
        run = new_run()
        return Run(run, _folder(run))
    folder = Path(told["folder"]) if told["folder"] else _folder(told["run"])
    controller = Process(*told["controller"]) if told["controller"] else None
    inputs = config.workerinput  # type: ignore[attr-defined]
    return Run(told["run"], folder, inputs["workerid"], inputs["workercount"], controller)


def _folder(run: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"pgdbm-{user}-{run}"


def _tell(session: pytest.Session, found: list[Leak], running: pytest.Item | None) -> None:
    if found:
        from pytest_pgdbm import findings

        session.config.stash[_KEPT].extend(leak for leak in found if leak.kept)
        findings.tell(session, found, running)
