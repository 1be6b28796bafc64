"""Further sets of a content that was built before: the same SQL once more, for other schemas.

pgdbm's runner is the reference; what it sent is sent again, migration by migration, each in the transaction in which
it was, and none of what pgdbm reads in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.schemas.plan import Plan
from pytest_pgdbm.schemas.recording import Recording, Template


class ReplayFailed(Exception):
    """What went well when it was recorded failed. The runner can say more about it."""


async def replay(
    connection: asyncpg.Connection, messages: Sequence[Template], schemas: Sequence[str], timeout: float | None
) -> None:
    """Does what was recorded for one service. `timeout` is how many seconds one migration may take.

    Raises ReplayFailed, which leaves what was made and may leave a transaction open.
    """
    for message in messages:
        try:
            await connection.execute(message.filled(schemas), timeout=timeout)
        except FAILURES as error:
            raise ReplayFailed from error


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
