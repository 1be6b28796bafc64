"""How the doctor writes what it has found: titles, labels, sizes and counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Row: TypeAlias = "tuple[str, str]"
"""A label, "" for one more line to the label before, and a text."""

_WIDTH = 11


def section(title: str, rows: Iterable[Row]) -> list[str]:
    """A title and its rows below it."""
    return [title, *(f"  {label:<{_WIDTH}} {text}".rstrip() for label, text in rows)]


def labelled(label: str, texts: Iterable[str]) -> list[Row]:
    """Rows of which the first has the label."""
    return [(label if number == 0 else "", text) for number, text in enumerate(texts)]


def size(amount: int | None) -> str:
    """Bytes as people read them: `512 bytes`, `24 kB`, `26 MB`."""
    if amount is None:
        return "of unknown size"
    for unit in ("bytes", "kB", "MB"):
        if amount < 10240 or unit == "MB":
            return f"{amount} {unit}"
        amount = round(amount / 1024)
    raise AssertionError("the last unit takes all")


def number(count: int, what: str) -> str:
    """`1 schema`, `2 schemas`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
