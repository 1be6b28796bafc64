"""How long a lease lasts."""

from __future__ import annotations

from pytest_pgdbm.ground.errors import LeaseEnded


class Term:
    """How long a lease lasts: from its test's set-up to its end. `test` says whose it is."""

    def __init__(self, test: str) -> None:
        self.test = test
        self.ended = False

    def check(self) -> None:
        """Raises LeaseEnded once the test is over."""
        if self.ended:
            raise LeaseEnded(
                f"this manager belonged to {self.test}, which has ended, and its schema with it; something that "
                "outlives the test (a task, a thread, a module-level variable) still uses it"
            )
