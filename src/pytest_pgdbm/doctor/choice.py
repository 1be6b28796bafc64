"""Which server a run would get and why, and of each other way what is found there, or what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pytest_pgdbm.doctor.lines import Row, labelled, section
from pytest_pgdbm.ground.endpoint import ServerKind
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.servers.choosing import kinds
from pytest_pgdbm.servers.installations import Installation, choose_for, examined
from pytest_pgdbm.settings import Settings

_TITLE = "Which server a run gets"
_SECONDS_FOR_DOCKER = 2.0


class Chosen(NamedTuple):
    """The way that a run would go, None if there is none; and the lines that tell it."""

    kind: ServerKind | None
    lines: list[str]


class _Way(NamedTuple):
    """What is found of one way: what it is if it works, else None; and more lines."""

    works: str | None
    more: list[str]


def look(settings: Settings) -> Chosen:
    """Looks at all ways; a URL is not tried here."""
    asked = list(kinds(settings))
    ways: dict[ServerKind, _Way] = {
        "url": _url(settings),
        "embedded": _embedded(settings),
        "container": _container(settings),
    }
    chosen = next((kind for kind in asked if ways[kind].works), None)
    rows: list[Row] = []
    for kind, way in ways.items():
        first, *more = [way.works, *way.more] if way.works else way.more
        rows += labelled(kind, [f"{_standing(kind, asked, chosen, settings)}{first}", *more])
    return Chosen(chosen, section(_TITLE, rows))


def _standing(kind: ServerKind, asked: list[ServerKind], chosen: ServerKind | None, settings: Settings) -> str:
    if kind == chosen:
        return "chosen: "
    if kind in asked:
        return "cannot be had: " if chosen is None or asked.index(chosen) > asked.index(kind) else "only without that: "
    if kind == "url" and settings.url.value is None:
        return ""
    return f"not tried, since {_asks(settings)}: "


def _asks(settings: Settings) -> str:
    if settings.server.value != "auto":
        return f"server={settings.server.value} (from {settings.server.source})"
    if settings.url.value is not None:
        return "there is a URL"
    return f"the programs are named (from {settings.server_bin.source})"


def _url(settings: Settings) -> _Way:
    given = settings.url
    if given.value is None:
        return _Way(None, ["none is given by --pgdbm-url, PGDBM_URL or pgdbm_url"])
    past = settings.admin_url
    more = [] if past.value is None else [f"past the pooler: {masked(str(past.value))} (from {past.source})"]
    return _Way(f"{masked(str(given.value))} (from {given.source})", more)


def _embedded(settings: Settings) -> _Way:
    try:
        found = choose_for(settings)
    except ServerFailed as error:
        return _failed(error)
    if settings.server_bin.value is not None:
        return _Way(_named(found), [])
    return _Way(_named(found), list(_others(found)))


def _others(chosen: Installation) -> Iterator[str]:
    for one in examined():
        if isinstance(one, str):
            yield f"cannot be used: {one}"
        elif one.bindir != chosen.bindir:
            yield f"there is also {_named(one)}"


def _named(found: Installation) -> str:
    return f"PostgreSQL {found.version}, {found.bindir} ({found.origin})"


def _container(settings: Settings) -> _Way:
    from pytest_pgdbm.servers.docker_address import docker_host
    from pytest_pgdbm.servers.docker_engine import connected

    image = settings.image.value
    try:
        client = connected(docker_host(), _SECONDS_FOR_DOCKER)
    except ServerFailed as error:
        return _failed(error)
    try:
        here = bool(client.images.list(name=image))
    finally:
        client.close()
    return _Way(f"image {image}, " + ("which is here" if here else "which the first run pulls"), [])


def _failed(error: ServerFailed) -> _Way:
    return _Way(None, [*error.why.splitlines(), f"to mend it: {error.remedy}"])
