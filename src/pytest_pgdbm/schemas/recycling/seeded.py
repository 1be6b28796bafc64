"""What a relation held when its set was first leased: what it is known by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SeededRows(NamedTuple):
    """The rows of a relation when its set was first leased: how many, by which transactions, in how many bytes.

    `spread` is whether they are on more than one page.
    """

    number: int
    writers: Sequence[int]
    size: int
    spread: bool
