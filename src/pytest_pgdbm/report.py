"""The lines that the plugin shows; the hooks print them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

from pytest_pgdbm import settings
from pytest_pgdbm.ground.errors import ServerFailed

OUR_FIXTURES = ("pgdbm_db", "pgdbm_database", "pgdbm_pool", "pgdbm_server", "pgdbm_url")
_NOT_RUN = "async def functions are not natively supported"


class Told(TypedDict):
    """What a process of the run has to say at its end."""

    failure: str | None
    version: str | None
    instead: str | None
    kept: list[str]
    dropped: list[str]
    waits: list[str]


def look_ahead(chosen: settings.Settings) -> threading.Thread:
    """Asks a server program for its version while pytest goes on: what takes longest in a run without a database.

    The answer stays in memory; `header` will find it once the thread has ended.
    """
    # Here, since modules are not loaded in two threads at once: https://github.com/python/cpython/issues/106905
    from pytest_pgdbm.servers import installations  # noqa: F401

    looking = threading.Thread(target=_server, args=(chosen,), name="pytest-pgdbm-header", daemon=True)
    looking.start()
    return looking


def header(chosen: settings.Settings) -> list[str]:
    """The lines for the top of the run: the server to come and why, versions, settings that somebody changed."""
    pgdbm = _version("pgdbm")
    line = f"pgdbm: {_server(chosen)}; pgdbm {pgdbm}; search_path {chosen.search_path.value or _path_of(pgdbm)}"
    changed = settings.changed(chosen)
    return [line] + ([f"pgdbm: {', '.join(changed)}"] if changed else [])


def _server(chosen: settings.Settings) -> str:
    kind = chosen.server.value
    if kind == "url" or (kind == "auto" and chosen.url.value is not None):
        return f"server at the URL given by {chosen.url.source}"
    if kind == "container":
        return f"container of {chosen.image.value}"
    return _embedded(chosen, fallback=kind == "auto" and chosen.server_bin.value is None)


def _embedded(chosen: settings.Settings, *, fallback: bool) -> str:
    from pytest_pgdbm.servers.installations import choose_for

    try:
        found = choose_for(chosen)
    except ServerFailed as error:
        container = f"container of {chosen.image.value}, since "
        return (container if fallback else "no server: ") + error.why.splitlines()[0]
    return f"embedded PostgreSQL {found.version} ({found.origin})"


def _path_of(pgdbm: str) -> str:
    """What that version of pgdbm pins a shared pool to; to ask it takes longer than the whole header."""
    return "of the server (pgdbm 0.4 sets none)" if pgdbm.startswith("0.4.") else "pg_catalog (by pgdbm)"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def marker_error(test: str, args: Sequence[object], kwargs: Mapping[str, object], known: Collection[str]) -> str | None:
    """What is wrong with a test's marker, or None."""
    words = ", ".join(f"{word}=" for word in known)
    if args:
        return f"{test}: @pytest.mark.pgdbm takes keywords only: {words}"
    for word in kwargs:
        if word not in known:
            return f"{test}: @pytest.mark.pgdbm has no {word}=; it has: {words}"
    if not isinstance(kwargs.get("seed", {}), Mapping):
        return f"{test}: @pytest.mark.pgdbm(seed=…) takes the seeds by service: seed={{'users': […]}}"
    if "search_path" in kwargs and (problem := _path_problem(kwargs["search_path"])):
        return f"{test}: @pytest.mark.pgdbm(search_path=…): {problem}"
    if kwargs.get("isolation", "schema") not in ("schema", "database"):
        return f"{test}: @pytest.mark.pgdbm(isolation=…) takes 'schema' or 'database'"
    if kwargs.get("reuse", "on") not in ("on", "off"):
        return f"{test}: @pytest.mark.pgdbm(reuse=…) takes 'on' or 'off'"
    return None


def _path_problem(path: object) -> str | None:
    if not isinstance(path, str):
        return "takes a text such as 'pg_catalog, public'"
    from pytest_pgdbm.reading import path_problem

    return path_problem(path)


def async_hint(message: str, fixturenames: Iterable[str]) -> str | None:
    """Our words for an asynchronous test that nobody ran; None if it is not that, or not about us."""
    ours = [name for name in fixturenames if name in OUR_FIXTURES]
    if not message.startswith(_NOT_RUN) or not ours:
        return None
    return (
        f"this asynchronous test asks for {ours[0]!r}, and no plugin runs it: mark it with @pytest.mark.asyncio, or set"
        " asyncio_mode = auto in the ini (pytest-asyncio); with anyio, mark it with @pytest.mark.anyio"
    )


def summary(told: Iterable[Told], *, verbose: bool) -> list[str]:
    """The lines for the end of the run: why there was no server, or not the header's, and what stays on it.

    If verbose, also of which version a server is whose version the header could not tell, and what was built anew.
    """
    parts = list(told)
    failures = dict.fromkeys(each["failure"] for each in parts if each["failure"])
    lines = [line for failure in failures for line in failure.splitlines()]
    lines += dict.fromkeys(each["instead"] for each in parts if each["instead"])
    lines += [line for each in parts for line in each["kept"]]
    waits = dict.fromkeys(wait for each in parts for wait in each["waits"])
    lines += [line for wait in waits for line in wait.splitlines()]
    if verbose:
        lines += dict.fromkeys(each["version"] for each in parts if each["version"])
    dropped = [line for each in parts for line in each["dropped"]]
    if dropped and verbose:
        lines += ["schemas were built anew after these tests, since they could not be used again:"]
        lines += [f"  {line}" for line in dropped]
    return lines
