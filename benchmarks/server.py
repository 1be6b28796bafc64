"""A server that somebody else has: an embedded one that another pytest run holds."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import runs


@contextmanager
def held() -> Iterator[str]:
    """The URL of such a server's database, for an ordinary role."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            runs.command("hold", ("-s",)),
            env=runs.environment(Path(folder, "record.json"), {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            yield next(line for line in holder.stdout if line.startswith("url=")).removeprefix("url=").strip()
        finally:
            holder.stdin.close()
            holder.stdout.read()  # until it has ended
