"""A server of one's own from programs on this machine: `initdb`, `postgres`, and the end of both."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.servers import leftovers, lend_name
from pytest_pgdbm.servers.accounts import Account, dropped_to, named, nameless
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.clusters import CachedCluster
from pytest_pgdbm.servers.copies import Programs, reachable_programs
from pytest_pgdbm.servers.environment import clean_environment
from pytest_pgdbm.servers.homes import make_home, make_socket_folder
from pytest_pgdbm.servers.scram import PLACEHOLDER, replace_placeholder
from pytest_pgdbm.servers.tuning import arguments, settings

_INITDB_SECONDS = 120.0
_START_SECONDS = 60.0
_STOP_SECONDS = 3.0
_POLL = 0.005
_PORTS = 5
_TAIL = 12
_REMEDY = "see the lines above; another server: --pgdbm-server=container or --pgdbm-url"


class _Made(NamedTuple):
    """What a start has made so far."""

    account: Account | None
    home: Path
    programs: Programs
    sockets: Path | None

    @property
    def data(self) -> Path:
        return leftovers.data_directory(self.home)


class EmbeddedServer:
    """A server on 127.0.0.1 and a Unix socket, for the user who made it and with a password.

    `start` runs in one thread; `stop` may be called from another one meanwhile, and ends it.
    """

    def __init__(self, job: Job) -> None:
        """`job.installation` is the folder of the programs, `job.version` their version."""
        self._job = job
        self._folder = Path(job.folder)
        self._log = self._folder / "postgres.log"
        self._busy = threading.Lock()
        self._gate = threading.Lock()
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._places: list[Path] = []

    def start(self) -> Started:
        """Makes the data directory and starts the server; returns when it takes connections."""
        with self._busy:
            try:
                return self._start()
            except BaseException:
                self._clear()
                raise

    def stop(self) -> None:
        """Ends the server at once and removes its data."""
        with self._gate:
            self._stopping = True
            self._end_child()
        with self._busy:
            self._clear()

    def died(self) -> str | None:
        """How the server ended, with the last lines of its log; None while it runs."""
        if self._child is None or self._child.poll() is None:
            return None
        return f"the server ended with status {self._child.returncode}\n{self._tail()}"

    def _start(self) -> Started:
        account = dropped_to()
        home = make_home(self._job.run, self._folder, account)
        self._places.append(home)
        programs = self._programs(account, home)
        sockets = make_socket_folder(self._job.run, self._folder, home, account)
        if sockets is not None:
            self._places.append(sockets)
        made = _Made(account, home, programs, sockets)
        cached = CachedCluster(Path(self._job.cluster)) if self._job.cluster else None
        return (self._on_a_copy(made, cached) if cached else None) or self._on_a_new_one(made, cached)

    def _on_a_copy(self, made: _Made, cached: CachedCluster) -> Started | None:
        """The server on a copy of the cached cluster; None, with nothing left, if that cannot be used."""
        owner = (made.account.uid, made.account.gid) if made.account is not None else None
        started = None
        if cached.copy(made.data, owner) and replace_placeholder(made.data, self._verifier):
            check = cached.begin_check()
            started = self._tried(made)
            if started is not None and check.passed():
                return started
        self._end_child()
        shutil.rmtree(made.data, ignore_errors=True)
        return None

    def _tried(self, made: _Made) -> Started | None:
        try:
            return self._serve(made)
        except ServerFailed:
            if self._stopping:
                raise
            return None

    def _on_a_new_one(self, made: _Made, cached: CachedCluster | None) -> Started:
        """The server on a cluster that `initdb` makes; from now on the cached cluster is its copy."""
        if cached is not None:
            self._initdb(made, PLACEHOLDER)
            cached.keep(made.data)
            if replace_placeholder(made.data, self._verifier):
                return self._serve(made)
            cached.discard()
            shutil.rmtree(made.data)
        self._initdb(made, self._verifier)
        return self._serve(made)

    @property
    def _verifier(self) -> str:
        assert self._job.verifier is not None
        return self._job.verifier

    def _programs(self, account: Account | None, home: Path) -> Programs:
        bindir = Path(self._job.installation or "")
        programs = reachable_programs(bindir, account, run=self._job.run, folder=self._folder, home=home)
        if programs.bindir != bindir:
            self._places.append(programs.bindir.parent)
        return programs

    def _initdb(self, made: _Made, verifier: str) -> None:
        secret = made.home / "password"
        # A password that is a verifier already is taken as it is.
        self._write_for(made.account, secret, verifier)
        command = [str(made.programs.bindir / "initdb"), "-D", str(made.data)]
        command += ["--pwfile", str(secret), "-U", self._job.admin.user, *self._initdb_options()]
        output = self._folder / "initdb.log"
        child = self._spawn(named(command), made, output)
        try:
            child.wait(_INITDB_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._failed(f"initdb took over {_INITDB_SECONDS:g} s", output) from None
        finally:
            secret.unlink(missing_ok=True)
        if child.returncode == lend_name.REFUSED:
            raise nameless(_tail(output).strip())
        if child.returncode != 0:
            raise self._failed(f"initdb ended with status {child.returncode}", output)

    def _initdb_options(self) -> list[str]:
        # https://www.postgresql.org/docs/current/app-initdb.html
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        options += ["--lc-messages=C", *self._locale()]
        if self._major >= 16:
            options += ["-c", "scram_iterations=1"]
        if self._major >= 18:
            options.append("--no-data-checksums")
        return options

    def _locale(self) -> list[str]:
        if _has_locale("C.UTF-8"):
            return ["--locale=C.UTF-8"]
        if self._major >= 17:
            return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return ["--locale=C"]

    @property
    def _major(self) -> int:
        match = re.match(r"\d+", self._job.version or "")
        return int(match[0]) if match else 0

    def _serve(self, made: _Made) -> Started:
        for _ in range(_PORTS):
            host, port = _free_port()
            child = self._spawn(self._postgres(made, host, port), made, self._log)
            if self._comes(child, made):
                notes = {"installation": str(self._job.installation), "data": str(made.data)}
                where = None if made.sockets is None else str(made.sockets)
                return Started(host, port, where, str(self._log), notes)
            # Between the look for a free port and now somebody took it, or it failed for good.
            if "could not create any TCP/IP sockets" not in _tail(self._log):
                break
        raise self._failed("postgres did not start", self._log)

    def _postgres(self, made: _Made, host: str, port: int) -> list[str]:
        quoted = '"' + str(made.sockets).replace('"', '""') + '"'
        chosen = {
            **settings(self._major or None),
            "listen_addresses": host,
            "port": str(port),
            "unix_socket_directories": quoted if made.sockets is not None else "",
            "unix_socket_permissions": "0700",
        }
        if os.name == "nt":
            del chosen["dynamic_shared_memory_type"]
        program = str(made.programs.bindir / "postgres")
        return [program, "-D", str(made.data), *arguments(chosen)]

    def _comes(self, child: subprocess.Popen[bytes], made: _Made) -> bool:
        """Waits until the server takes connections, as `pg_ctl` does; False if it ended instead."""
        until = time.monotonic() + _START_SECONDS
        while child.poll() is None:
            if _is_ready(made.data):
                return True
            if time.monotonic() > until:
                raise self._failed(f"postgres took over {_START_SECONDS:g} s to start", self._log)
            time.sleep(_POLL)
        return False

    def _spawn(self, command: list[str], made: _Made, output: Path) -> subprocess.Popen[bytes]:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with self._gate:
                if self._stopping:
                    raise ServerFailed("the server was stopped while it started", _REMEDY)
                self._child = self._popen(command, made, descriptor)
                return self._child
        finally:
            os.close(descriptor)

    def _popen(self, command: list[str], made: _Made, output: int) -> subprocess.Popen[bytes]:
        who: dict[str, Any] = made.account.popen() if made.account is not None else {}
        try:
            return subprocess.Popen(
                command,
                env=clean_environment(made.programs.libraries),
                cwd=made.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
                **who,
            )
        except OSError as error:
            name = f" as the user {made.account.name}" if made.account is not None else ""
            raise ServerFailed(f"{command[0]} could not be run{name}: {error}", _REMEDY) from error

    def _end_child(self) -> None:
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.send_signal(leftovers.QUIT)
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _clear(self) -> None:
        self._end_child()
        while self._places:
            # The last first: what was made within another place goes with that anyway.
            leftovers.take_away(str(self._places.pop()))

    def _write_for(self, account: Account | None, file: Path, text: str) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
            if account is not None:
                # Not by its name, under which that user could put a link meanwhile.
                os.fchown(descriptor, account.uid, account.gid)

    def _tail(self) -> str:
        return _tail(self._log)

    def _failed(self, what: str, output: Path) -> ServerFailed:
        why = f"{what} ({self._job.installation}, PostgreSQL {self._job.version})"
        return ServerFailed(f"{why}\n{_tail(output)}".rstrip(), _REMEDY)


def _is_ready(data: Path) -> bool:
    lines = leftovers.pid_file(data)
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _free_port() -> tuple[str, int]:
    """A loopback address and a port of it that nobody uses now."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((host, 0))
                return host, probe.getsockname()[1]
        except OSError:
            continue
    raise ServerFailed("no loopback address has a free port", "ip link set lo up")


def _has_locale(name: str) -> bool:
    """Whether the system knows the locale."""
    import locale

    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True


def _tail(log: Path) -> str:
    """The last lines of a log, indented; empty if there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return masked("\n".join(f"  {line}" for line in lines[-_TAIL:]))
