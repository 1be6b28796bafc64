"""The sweep that the user asks for: at a URL, and of the folders on this host; and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import asyncpg

from pytest_pgdbm.connections import login, whereabouts
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.doctor import here
from pytest_pgdbm.doctor.visit import visiting
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.keeper import stale
from pytest_pgdbm.schemas.survey import Seen, survey
from pytest_pgdbm.schemas.sweep import Swept, sweep
from pytest_pgdbm.servers.choosing import given
from pytest_pgdbm.settings import Settings

APPLICATION = "pgdbm sweep"
SECONDS_TO_WAIT = 10.0
"""How long somebody else's sweep is waited for."""


def clean_folders(environ: Mapping[str, str]) -> tuple[list[str], bool]:
    """Takes away what dead runs have left on this host, their servers and containers included.

    A line for each folder, and whether none is left.
    """
    before = here.dead_folders(environ)
    for parent in here.parents(environ):
        stale.sweep(parent)
    after = here.dead_folders(environ)
    lines = [f"swept: {folder}" for folder in before if folder not in after]
    lines += [f"stays: {folder}, what it tells of cannot be taken away now" for folder in after]
    return lines or ["on this host: no dead run has left anything"], not after


async def clean_server(settings: Settings) -> tuple[list[str], bool]:
    """Drops what dead runs have left at the URL; what came of it, and whether nothing of theirs is left."""
    endpoint = given(settings)
    place = f"at {endpoint.host}:{endpoint.port}"
    try:
        endpoint = await login.first_login(endpoint, application_name=APPLICATION, allow=settings.url_allow)
        swept = await _sweep(endpoint)
        async with visiting(endpoint) as connection:
            found = await survey(connection)
    except ServerFailed as error:
        return [f"{place}: not swept, {error}"], False
    except FAILURES as error:
        return [f"{place}: could not be swept, {masked(str(error))}"], False
    lines = list(_told(swept, found))
    return lines or [f"{place}: no dead run has left anything"], not any(seen.state == "dead" for seen in found)


async def _sweep(endpoint: Endpoint) -> Swept:
    connection = await login.connect(endpoint, endpoint.database, endpoint.admin, application_name=APPLICATION)
    try:
        await whereabouts.look_again(connection, endpoint)
        return await _patiently(connection)
    finally:
        connection.terminate()


async def _patiently(connection: asyncpg.Connection) -> Swept:
    until = asyncio.get_running_loop().time() + SECONDS_TO_WAIT
    while True:
        swept = await sweep(connection)
        if not swept.elsewhere or asyncio.get_running_loop().time() > until:
            return swept
        await asyncio.sleep(0.1)


def _told(swept: Swept, found: list[Seen]) -> Iterator[str]:
    for each in swept.dropped:
        yield f"swept: {each.kind} {each.name}"
    if swept.elsewhere:
        yield f"not swept: somebody else has been sweeping here for {SECONDS_TO_WAIT:g} s"
    for kept in swept.kept:
        yield f"stays: {kept.kind} {kept.name}, {kept.why}"
    for seen in found:
        if seen.state in ("alive", "dying"):
            yield f"lives: {seen.kind} {seen.name}, of run {seen.run}"
        elif seen.state is None:
            yield f"not ours to drop: {seen.kind} {seen.name}, {seen.why}"
