"""Two sets of one content, compared by `pg_dump`.

The same must be the same, but for columns that differ between any two builds (the time, random numbers): these are
found by building twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

_NULL = "\\N"


def differences(one: str, other: str, copy: str) -> list[str]:
    """Where `copy` is otherwise than two dumps of the same content are, a line each."""
    differing = _columns_that_differ(one, other)
    return [
        f"{table or ''}: {mine!r} and not {ours!r}"
        for table, mine, ours in _side_by_side(copy, one)
        if not _same(mine, ours, differing.get(table, frozenset()))
    ]


def _same(mine: Sequence[str] | None, ours: Sequence[str] | None, differing: frozenset[int]) -> bool:
    if mine is None or ours is None or len(mine) != len(ours):
        return False
    return all(
        (a == _NULL) == (b == _NULL) if at in differing else a == b
        for at, (a, b) in enumerate(zip(mine, ours, strict=True))
    )


def _columns_that_differ(one: str, other: str) -> dict[str, frozenset[int]]:
    found: dict[str, frozenset[int]] = {}
    for table, mine, ours in _side_by_side(one, other):
        if mine != ours:
            assert table, f"only rows may differ between two builds: {mine} {ours}"
            assert mine, f"there are more rows in one build than in the other: {ours}"
            assert ours, f"there are more rows in one build than in the other: {mine}"
            new = {at for at, (a, b) in enumerate(zip(mine, ours, strict=True)) if a != b}
            found[table] = found.get(table, frozenset()) | new
    # How long pgdbm took for a migration may be the same by chance.
    return {table: found.get(table, frozenset()) | _timings(table) for table in {*found, *map(_table, _rows(one))}}


def _timings(table: str) -> frozenset[int]:
    columns = table.partition("(")[2].partition(")")[0].split(", ")
    return frozenset({columns.index("execution_time_ms")} if "execution_time_ms" in columns else ())


def _table(row: tuple[str, Sequence[str]]) -> str:
    return row[0]


def _side_by_side(one: str, other: str) -> Iterator[tuple[str, Sequence[str] | None, Sequence[str] | None]]:
    """The lines of two dumps side by side, with the table whose row it is; a row as its columns."""
    for mine, ours in zip_longest(_rows(one), _rows(other)):
        yield (mine or ours or ("", ()))[0], mine and mine[1], ours and ours[1]


def _rows(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    table = ""
    for line in text.splitlines():
        if line.startswith("COPY ") and line.endswith(" FROM stdin;"):
            yield "", [line]
            table = line
        elif line == "\\.":
            table = ""
            yield "", [line]
        else:
            yield table, line.split("\t") if table else [line]
