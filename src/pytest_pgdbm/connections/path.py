"""The `search_path` of the test's connections, as `pgdbm_search_path` says it.

`$service` stands for the schema of the manager through which a connection is acquired. A connection that comes from
the pool itself has the path without it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pytest_pgdbm.ground.names import quote_ident

SERVICE = "$service"
UNPINNED = "none"
_SERVERS_OWN = '"$user", public'


class SearchPath(NamedTuple):
    """A search path, by its entries; None leaves pgdbm's default, and `()` the server's own."""

    entries: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str | None) -> SearchPath:
        """The path from its setting: entries with commas between them, or the word `none` for no pin at all."""
        if text is None:
            return cls(None)
        entries = tuple(entry for entry in re.split(r"[,\s]+", text) if entry)
        return cls(() if entries == (UNPINNED,) else entries)

    def for_pool(self, default: str | None) -> str | None:
        """What the pool is pinned to; `default` is what pgdbm pins to by itself, None for no pin."""
        if self.entries is None:
            return default
        if not self.entries:
            return None
        return ", ".join(entry for entry in self.entries if entry != SERVICE) or default

    def for_schema(self, schema: str, *, always: bool = False) -> str | None:
        """What a manager of this schema sets on each connection it acquires; None where the pool's path will do.

        `always` is for a path that is not the pool's own.
        """
        if always and self.entries == ():
            return _SERVERS_OWN  # what a connection of the pool goes back to by itself is the pool's pin
        if not self.entries or not (always or SERVICE in self.entries):
            return None
        return ", ".join(quote_ident(schema if entry == SERVICE else entry) for entry in self.entries)
