"""What every side's tests do: insert into two tables, read back, count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

MIGRATIONS = Path(os.environ.get("BENCH_MIGRATIONS", "."))
LOOP: Any = os.environ.get("BENCH_LOOP", "function")
ROWS = 10

each_test = pytest.mark.parametrize("number", range(int(os.environ.get("BENCH_TESTS", "1"))))


async def work(db: Any) -> None:
    """The body of a test, on anything that has a manager's methods."""
    await db.execute("INSERT INTO {{tables.t0}} (email) VALUES ('u1'), ('u2'), ('u3')")
    await db.execute(
        "INSERT INTO {{tables.t1}} (email, parent_id) SELECT email, id FROM {{tables.t0}} WHERE email LIKE 'u%'"
    )
    first = await db.fetch_all("SELECT email FROM {{tables.t0}} WHERE email LIKE 'u%' ORDER BY email")
    second = await db.fetch_all("SELECT email FROM {{tables.t1}} ORDER BY email")
    assert len(first) == len(second) == 3
    assert await db.fetch_value("SELECT count(*) FROM {{tables.t0}}") == ROWS + 3
