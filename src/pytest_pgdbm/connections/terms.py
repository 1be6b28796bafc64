"""How long a lease lasts."""

from __future__ import annotations

import time

from pytest_pgdbm.ground.errors import LeaseEnded, LeaseLost

LOSS = (
    "the plugin's connection that shows others that they are in use has ended (a restart of the server,"
    " pg_terminate_backend, the network) or was given up after an interruption (Ctrl-C, a time-out), so that they may"
    " be swept"
)


class Term:
    """How long a lease lasts: from its test's set-up to its end. `test` says whose it is.

    `over` is when it ended, by `time.monotonic()`; None until then.
    """

    def __init__(self, test: str) -> None:
        self.test = test
        self.over: float | None = None
        self.lost = False

    @property
    def ended(self) -> bool:
        """Whether its test is over."""
        return self.over is not None

    def end(self) -> None:
        """Says that its test is over now."""
        self.over = time.monotonic()

    def check_lost(self) -> None:
        """Raises LeaseLost once what was leased is not this process's any more."""
        if self.lost:
            raise LeaseLost(
                f"the schemas of {self.test} were lost: {LOSS}. Later tests get others; a fixture of a wider scope"
                " is lost until its scope ends"
            )

    def check(self) -> None:
        """Raises LeaseEnded once the test is over, LeaseLost once what was leased is lost."""
        self.check_lost()
        if self.ended:
            raise LeaseEnded(
                f"this manager belonged to {self.test}, which has ended, and its schema with it; something that "
                "outlives the test (a task, a thread, a module-level variable) still uses it"
            )
