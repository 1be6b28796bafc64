"""What there is of servers, caches and leftovers, told without starting or changing anything, and the sweep of it."""

from __future__ import annotations

import asyncio
import os

from pytest_pgdbm.doctor import choice, cleaning, here, server
from pytest_pgdbm.settings import Settings


def examine(settings: Settings) -> tuple[list[str], bool]:
    """The lines that `--pgdbm-doctor` shows, and whether a run would get a server.

    Starts no server and writes nothing, neither at the URL nor on this host.
    """
    chosen = choice.look(settings)
    lines = [*chosen.lines, "", *here.lines(os.environ)]
    if chosen.kind != "url":
        return lines, chosen.kind is not None
    told, works = asyncio.run(server.lines(settings))
    return [*lines, "", *told], works


def sweep(settings: Settings) -> tuple[list[str], bool]:
    """Sweeps what dead runs have left, at the URL if one is given and on this host; what came of it, line by line.

    And whether nothing of dead runs is left.
    """
    folders, tidy = cleaning.clean_folders(os.environ)
    if settings.url.value is None or settings.server.value not in ("auto", "url"):
        return [*folders, "at a URL: none is given, and servers of the plugin's own end with their run"], tidy
    told, clean = asyncio.run(cleaning.clean_server(settings))
    return [*told, *folders], tidy and clean
