"""The mark by which a schema is known to be the plugin's own: its name, and a comment that says the same."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from pytest_pgdbm.ground.names import parse_schema

_COMMENT = re.compile(r"pytest-pgdbm schema of run (?P<run>[0-9a-f]{10}), process \d+ on \S+, service .*", re.DOTALL)


@dataclass(frozen=True)
class Proof:
    """What the comment on each schema of a run says."""

    run: str

    def comment(self, service: str) -> str:
        """The comment for the schema of this service."""
        return (
            f"pytest-pgdbm schema of run {self.run}, process {os.getpid()} on {socket.gethostname()},"
            f" service {service!r}"
        )

    def holds(self, schema: str, comment: str | None) -> bool:
        """Whether this run made the schema: name and comment both say so."""
        name = parse_schema(schema)
        said = _COMMENT.fullmatch(comment or "")
        return name is not None and said is not None and name.run == said["run"] == self.run
