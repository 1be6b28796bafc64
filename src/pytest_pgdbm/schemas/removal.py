"""How sets go that nobody needs any more: at once, or after those who hold on to them were dealt with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeAlias

import asyncpg

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.failing import FAILURES
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.schemas.drop import Kept, drop, mark
from pytest_pgdbm.schemas.holders import Holder, end_left_behind, find_holders, find_writing
from pytest_pgdbm.schemas.proof import Proof

SECONDS_TO_TRY = 0.2
"""How long a drop waits for a lock before it is looked who has it."""

Sets: TypeAlias = "Sequence[Sequence[str]]"
"""The schemas of each set."""


class Removal:
    """Drops what this run made. `pool_application` is what the connections of the run's pool call themselves."""

    def __init__(self, admin: Admin, proof: Proof, pool_application: str) -> None:
        self._admin = admin
        self._proof = proof
        self._pool_application = pool_application

    async def remove(self, sets: Sets) -> tuple[list[Kept], list[Holder]]:
        """Drops sets, all together; returns what had to stay, and who was cut off for it.

        If the connection is lost by then, they are for somebody else to sweep.
        """
        if not any(sets):
            return [], []
        try:
            return await self._remove(sets, self._admin.losses)
        except FAILURES as error:
            why = f"the connection to the server was lost ({masked(str(error))})"
            return [Kept(schema, why) for schemas in sets for schema in schemas], []

    async def _remove(self, sets: Sets, losses: int) -> tuple[list[Kept], list[Holder]]:
        together = [schema for schemas in sets for schema in schemas]
        async with self._admin.administrator() as connection:
            if self._admin.losses != losses:
                return [], []
            try:
                return await drop(connection, together, self._proof, seconds=SECONDS_TO_TRY), []
            except asyncpg.PostgresError:
                holders = await find_holders(connection, together, self._pool_application)
                ended = await end_left_behind(connection, holders)
            try:
                return await drop(connection, together, self._proof), ended
            except asyncpg.PostgresError:
                return [kept for schemas in sets for kept in await self._alone(connection, schemas)], ended

    async def _alone(self, connection: asyncpg.Connection, schemas: Sequence[str]) -> list[Kept]:
        """Drops one set by itself, when all together could not go."""
        try:
            return await drop(connection, schemas, self._proof, seconds=SECONDS_TO_TRY)
        except asyncpg.PostgresError as error:
            holders = await find_holders(connection, schemas, self._pool_application)
            why = _why(error, holders or await find_writing(connection, 0))
            kept = [Kept(schema, why) for schema in schemas]
            with contextlib.suppress(asyncpg.PostgresError):
                await mark(connection, kept)
            return kept


def _why(error: asyncpg.PostgresError, holders: Sequence[Holder]) -> str:
    if isinstance(error, asyncpg.LockNotAvailableError) and holders:
        # A change of a function, say, has no lock that tells of what, but the drop waits for its end.
        maybe = ", perhaps" if holders[0].writing else ""
        return f"locked{maybe} by " + ", ".join(map(str, holders))
    return f"the server refused to drop it: {error.args[0]}"
