"""How full the shared pool is, and a warning before it is exhausted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pgdbm import AsyncDatabaseManager

logger = logging.getLogger(__name__)

HIGH = 0.8


@dataclass(frozen=True)
class PoolHealth:
    """Connections of the pool: open, in use, idle, and how many there can be."""

    total: int
    active: int
    idle: int
    limit: int

    @property
    def usage(self) -> float:
        """The part of the possible connections that is in use, from 0 to 1."""
        return self.active / self.limit


async def check_pool(db: AsyncDatabaseManager) -> PoolHealth:
    """The state of the pool behind this manager; a warning in the log if it is nearly exhausted.

    `get_pool_stats` belongs to the manager; the pool is an `asyncpg.Pool` and has no such method. `size` is what is
    open at this moment, so that exhaustion is measured against `max_size`.
    """
    stats = await db.get_pool_stats()
    health = PoolHealth(stats["size"], stats["used_size"], stats["free_size"], stats["max_size"])
    if health.usage > HIGH:
        logger.warning("High pool usage: %.1f%%", 100 * health.usage)
    return health
