"""Which server a run gets: the URL's if one is given, else one from installed programs, else a container."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from pytest_pgdbm.ground.endpoint import Endpoint, Login, ServerKind
from pytest_pgdbm.ground.errors import Attempt, NoServer, ServerFailed
from pytest_pgdbm.ground.records import Run
from pytest_pgdbm.keeper import Holding
from pytest_pgdbm.keeper.kept import KeptServer
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.cache import cluster_file
from pytest_pgdbm.servers.installations import Installation, choose_for
from pytest_pgdbm.servers.keeping import kept_server
from pytest_pgdbm.servers.scram import verifier
from pytest_pgdbm.settings import Settings

ADMIN = "postgres"
TESTER = "pgdbm"
PATIENCE = {"url": 0.0, "embedded": 10.0, "container": 60.0}
"""For how many seconds a server that was started is waited for until it lets somebody in."""

LogIn = Callable[[Endpoint, float], Endpoint]


class Choice(NamedTuple):
    """What a run's server is chosen from."""

    settings: Settings
    run: Run
    extensions: Collection[str]


def kinds(settings: Settings) -> Iterator[ServerKind]:
    """The ways to try, in order."""
    asked = settings.server.value
    if asked != "auto":
        yield asked
    elif settings.url.value is not None:
        yield "url"
    elif settings.server_bin.value is not None:
        yield "embedded"  # who names the programs does not want others
    else:
        yield "embedded"
        yield "container"


def get_server(choice: Choice, holding: Holding, log_in: LogIn, meanwhile: Callable[[], None]) -> Endpoint:
    """The first server that can be had, logged in to once.

    `log_in` takes an endpoint and for how many seconds to be patient; `meanwhile` is called while a server starts.
    Raises NoServer with all that was tried.
    """
    attempts: list[Attempt] = []
    remedies: list[str] = []
    for kind in kinds(choice.settings):
        try:
            return _get(kind, choice, holding, log_in, meanwhile)
        except ServerFailed as error:
            attempts.append(Attempt(kind, error.why))
            remedies.append(error.remedy)
    raise NoServer(attempts, remedies[0])


def _get(kind: ServerKind, choice: Choice, holding: Holding, log_in: LogIn, meanwhile: Callable[[], None]) -> Endpoint:
    if kind == "url":
        return _checked(log_in(given(choice.settings), PATIENCE[kind]), choice)
    job, endpoint = _embedded(choice) if kind == "embedded" else _container(choice)
    kept = kept_server(job, choice.run, choice.settings) if kind == "embedded" else None
    found = _again(kept, choice, log_in) if kept is not None else None
    if found is None:
        place = holding if kept is None else kept
        started = place.start(job, meanwhile)
        try:
            new = endpoint(started)
            if kept is not None:
                new = replace(new, kept="", kept_in=str(kept.folder))
            found = _checked(log_in(new, PATIENCE[kind]), choice)
        except BaseException:
            place.stop_server()
            raise
    if kept is not None:
        kept.note(found.to_json())
    return found


def _again(kept: KeptServer, choice: Choice, log_in: LogIn) -> Endpoint | None:
    """The kept server, if an earlier run has left one that is as it was; what is wrong with it ends with it."""
    known = kept.known
    if known is None:
        return None
    try:
        return _checked(log_in(Endpoint.from_json(known), 0.0), choice)
    except ServerFailed:
        return None


def _checked(endpoint: Endpoint, choice: Choice) -> Endpoint:
    wanted = choice.settings.server_version
    if wanted.value is None or f"{endpoint.version}.".startswith(f"{wanted.value}."):
        return endpoint
    raise ServerFailed(
        f"the server ({endpoint.why}) is PostgreSQL {endpoint.version},"
        f" and {wanted.value} is asked for ({wanted.source})",
        _remedy(endpoint.kind, wanted.value),
    )


def _remedy(kind: ServerKind, version: str) -> str:
    """For a server of another version than is asked for."""
    others = {
        "url": "give the URL of a server of that version",
        "embedded": "name the programs of that version (--pgdbm-server-bin)",
        "container": f"choose an image of that version (--pgdbm-image=postgres:{version})",
    }
    return f"{others[kind]}, or ask for another version with --pgdbm-server-version"


def given(settings: Settings) -> Endpoint:
    """What the URLs say of their server, before the first login."""
    url, admin_url = settings.url.value, settings.admin_url.value
    assert url is not None
    login, host, port = _address(url)
    endpoint = Endpoint(
        kind="url",
        version="",
        host=host,
        port=port,
        database=unquote(urlsplit(str(url)).path.lstrip("/")),
        login=login,
        admin=login,
        why=settings.url.source,
        url=str(url),
    )
    if admin_url is None:
        return endpoint
    admin, host, port = _address(admin_url)
    return replace(endpoint, admin=admin, admin_url=str(admin_url), admin_place=f"{host}:{port}")


def _address(url: str) -> tuple[Login, str, int]:
    """Login, host and port that a URL names; for showing, not for connecting."""
    parts = urlsplit(str(url))
    query = parse_qs(parts.query)
    who, _, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    host, _, port = where.rpartition(":") if re.search(r":\d*$", where) else (where, "", "")
    return (
        Login(unquote(user), unquote(password) if password else None),
        host.strip("[]") or query.get("host", ["localhost"])[0],
        int(port or query.get("port", ["5432"])[0]),
    )


def _embedded(choice: Choice) -> tuple[Job, Callable[[Started], Endpoint]]:
    found = choose_for(choice.settings, choice.extensions)
    password = secrets.token_urlsafe(18)
    cluster = cluster_file(found, os.environ)
    job = Job(
        run=choice.run.id,
        kind="embedded",
        folder=str(choice.run.folder),
        admin=Login(ADMIN),
        installation=str(found.bindir),
        version=found.version,
        verifier=verifier(password),
        cluster=None if cluster is None else str(cluster),
    )
    admin = Login(ADMIN, password)
    since = _since(choice, found)
    return job, lambda started: _started(
        "embedded", choice, admin, started, why=found.origin, since=since, sharedir=str(found.sharedir)
    )


def _since(choice: Choice, found: Installation) -> str:
    """What speaks against the programs that the run's header names, if others are taken for the tests' extensions."""
    usual = choose_for(choice.settings) if choice.extensions else found
    if usual == found:
        return ""
    missing = ", ".join(sorted(set(choice.extensions) - usual.extensions()))
    return f"PostgreSQL {usual.version} ({usual.origin}) has no {missing}"


def _container(choice: Choice) -> tuple[Job, Callable[[Started], Endpoint]]:
    image = choice.settings.image.value
    admin = Login(ADMIN, secrets.token_urlsafe(18))
    job = Job(
        run=choice.run.id,
        kind="container",
        folder=str(choice.run.folder),
        admin=admin,
        image=image,
    )
    return job, lambda started: _started("container", choice, admin, started, why=f"image {image}")


def _started(
    kind: ServerKind,
    choice: Choice,
    admin: Login,
    started: Started,
    *,
    why: str,
    since: str = "",
    sharedir: str | None = None,
) -> Endpoint:
    as_superuser = choice.settings.role.value == "superuser"
    login = admin if as_superuser else Login(TESTER, secrets.token_urlsafe(18))
    return Endpoint(
        kind=kind,
        version="",
        host=started.host,
        port=started.port,
        database="postgres",
        login=login,
        admin=admin,
        why=why,
        since=since,
        socket_dir=started.socket_dir,
        sharedir=sharedir,
    )
