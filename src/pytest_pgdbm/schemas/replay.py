"""Further sets of a content that was built before: the same SQL once more, for other schemas.

pgdbm's runner is the reference; what it sent is sent again, migration by migration, each in the transaction in which
it was, and none of what pgdbm reads in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.schemas.contents import ReplayFailed
from pytest_pgdbm.schemas.recording import Template


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
