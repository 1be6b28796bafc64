"""What runs have left on a server, whose it is, and what a sweep would do with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import asyncpg

from pytest_pgdbm.doctor.lines import Row, number, size
from pytest_pgdbm.schemas.extensions import Made, find_made
from pytest_pgdbm.schemas.survey import Seen, survey

TITLE = "Made by runs of the plugin"

_STATES = {"alive": "in use", "dying": "its process has died, its run lives and sweeps it"}


async def rows(connection: asyncpg.Connection) -> list[Row]:
    """What there is, by run; then what only looks so, and the extensions; then what a sweep would drop."""
    found = await survey(connection)
    extensions = await find_made(connection)
    return [*_runs(found), *_others(found), *_extensions(extensions), ("in all", _in_all(found))]


def _runs(found: Sequence[Seen]) -> Iterator[Row]:
    for run in dict.fromkeys(seen.run for seen in found if seen.run):
        its = [seen for seen in found if seen.run == run]
        dead = its[0].state == "dead"
        yield "run", f"{run}, {'of which no process lives' if dead else 'which lives'}"
        for seen in its:
            yield "", f"  {_told(seen)}: {_fate(seen)}"


def _fate(seen: Seen) -> str:
    if seen.state != "dead":
        return _STATES[seen.state or "alive"]
    return f"would stay, {seen.why}" if seen.why else "would be swept"


def _told(seen: Seen) -> str:
    by = f", by process {seen.said.process} on {seen.said.host}" if seen.said is not None else ""
    return f"{seen.kind} {seen.name}, {size(seen.size)}, owner {seen.owner}{by}"


def _others(found: Sequence[Seen]) -> Iterator[Row]:
    strange = [seen for seen in found if not seen.run]
    if strange:
        yield "not ours", "to drop, whatever the name or the comment says:"
    for seen in strange:
        yield "", f"  {seen.kind} {seen.name}, {size(seen.size)}, owner {seen.owner}: {seen.why}"


def _extensions(made: Sequence[Made]) -> Iterator[Row]:
    if made:
        yield "extensions", "which stay, since others may use them by now:"
    for each in made:
        yield "", f"  {each.name} {each.version}, {each.origin}: DROP EXTENSION if nobody does"


def _in_all(found: Sequence[Seen]) -> str:
    going = [seen for seen in found if seen.state == "dead" and not seen.why]
    if not going:
        return "a sweep would drop nothing"
    schemas = sum(seen.kind == "schema" for seen in going)
    counts = [number(schemas, "schema"), number(len(going) - schemas, "database")]
    amount = sum(seen.size or 0 for seen in going)
    return f"a sweep would drop {' and '.join(text for text in counts if text[0] != '0')}, {size(amount)}"
