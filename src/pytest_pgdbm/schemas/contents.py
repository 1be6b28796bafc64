"""What the builds of one process have shown, for further sets of the same content."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pgdbm.schemas.plan import BuiltSet, Plan

if TYPE_CHECKING:
    from pytest_pgdbm.schemas.recording import Recording


class ReplayFailed(Exception):
    """What went well when it was recorded failed. The runner can say more about it."""


class Recordings:
    """The recordings of one process, by what the sets are built from."""

    def __init__(self) -> None:
        self._known: dict[object, Recording | None] = {}

    def get(self, plan: Plan) -> Recording | None:
        """What makes this set, if that was recorded and can be replayed."""
        return self._known.get(_content(plan))

    def keep(self, plan: Plan, recording: Recording | None) -> None:
        """Keeps what a build recorded, unless a replay of this content has failed before."""
        self._known.setdefault(_content(plan), recording)

    def refuse(self, plan: Plan) -> None:
        """Has this content always be built by the runner."""
        self._known[_content(plan)] = None


def _content(plan: Plan) -> object:
    return plan.key, tuple(member.files for member in plan.members)


@dataclass
class Contents:
    """What the first builds of a process have shown: which contents were looked at, and what makes them once more."""

    seen: set[tuple[object, ...]] = field(default_factory=set)
    recordings: Recordings = field(default_factory=Recordings)

    async def built(self, plan: Plan, build: Callable[[], Awaitable[BuiltSet]]) -> BuiltSet:
        """What `build` makes; by pgdbm's runner, if it cannot be made by a replay."""
        try:
            return await build()
        except ReplayFailed:
            self.recordings.refuse(plan)
            return await build()
