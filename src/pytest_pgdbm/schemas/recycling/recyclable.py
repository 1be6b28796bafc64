"""A set that can be given back."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pgdbm.schemas.recycling import function
from pytest_pgdbm.schemas.recycling.function import EMPTIED, UNTOUCHED, Found
from pytest_pgdbm.schemas.recycling.pristine import Pristine
from pytest_pgdbm.schemas.recycling.vacuuming import finished_definition

_NEVER = -1
"""No number of a transaction."""


@dataclass
class Recyclable:
    """A set that can be given back: what it was like, and the functions in the session that look after it.

    `losses` is how often the connection for administration had been lost by then. Nothing is done to it by messages
    that nobody waits for while the SQL condition `unless` is true. `since` is the number of the next transaction when
    it was looked at last, if none was in progress then: what has a lower one is known.
    """

    name: str
    pristine: Pristine
    losses: int
    unless: str | None = None
    session: int = -1
    since: int = _NEVER

    @property
    def finished(self) -> str:
        """The name of the function that tells whether VACUUM has finished."""
        return f"{self.name}_finished"

    @property
    def definition(self) -> str:
        """The statements that make its functions in the session."""
        statements = [self.pristine.definition(self.name), finished_definition(self.finished)]
        if self.unless is not None:
            statements.append(function.condition_definition(self._condition, self.unless))
        return "; ".join(statements)

    def call(self, over: float) -> str:
        """The statement that looks at the set and empties it; its test ended `over` seconds ago.

        It yields no row where the condition `unless` is true.
        """
        expected = self.pristine.fingerprint.quick_value
        condition = None if self.unless is None else self._condition
        return function.call_with(self.name, expected, self.since, over, condition)

    @property
    def _condition(self) -> str:
        """The name of the function that tells whether `unless` is true."""
        return f"{self.name}_unless"

    def looked_at(self, found: Found) -> None:
        """Says what its function has found just now."""
        # Not what others had reached: between two looks at this set nothing may have been written.
        self.since = found.reached if found.calm and found.state in (UNTOUCHED, EMPTIED) else _NEVER
