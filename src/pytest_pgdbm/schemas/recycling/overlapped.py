"""Gives sets back in the thread of the tests, by messages that nobody waits for: what nearly every test needs.

At the end of a test the call of the set's function goes out, at the end of the next one a VACUUM of what the function
emptied, with the question whether it has finished; the answer is there at the end of the one after that. Whatever is
not as plain as that goes on in the private loop, from what was found by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.line import Answer, Question, Row
from pytest_pgdbm.schemas.recycling.function import EMPTIED, UNTOUCHED, Found, call_with
from pytest_pgdbm.schemas.recycling.pristine import Pristine
from pytest_pgdbm.schemas.recycling.recyclable import Recyclable
from pytest_pgdbm.schemas.recycling.vacuuming import Vacuuming, pages_statement, vacuum_statement

MOST_VACUUMS = 2
"""So often a VACUUM is sent; that of the private loop waits for what is in its way."""

Done = Callable[[bool, "Found | None"], None]
"""Called with whether a set is as it was; if not, with what its function has found, None if it is to be called anew."""


class Overlapped:
    """The sets of one database that are on their way back over its connection for administration."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._next: list[_Reset] = []
        admin.on_taken_back.append(self._hand_over)
        admin.on_loss.append(self._next.clear)

    def begin(self, recyclable: Recyclable, over: float, done: Done) -> bool:
        """Has a set given back by the next `go_on`, unless the connection is at work or does not know the set.

        `over` is when its test ended, by `time.monotonic()`. `done` is called in whichever thread hears of it.
        """
        with self._admin.line() as line:
            known = recyclable.session == self._admin.session and recyclable.losses == self._admin.losses
            if line is None or line.broken or not known:
                return False
            self._next.append(_Reset(recyclable, over, done, self._next))
            return True

    def go_on(self) -> None:
        """Hears what the server has done by now, and sends what comes next; from any thread, without waiting."""
        with self._admin.line() as line:
            if line is not None and not line.broken:
                line.listen()
                line.ask([question for reset in self._taken() for question in reset.questions(line.server)])

    def _hand_over(self) -> None:
        for reset in self._taken():
            reset.stop()

    def _taken(self) -> list[_Reset]:
        taken, self._next[:] = list(self._next), []
        return taken


class _Reset:
    """A set on its way back. What is to be sent for it is said by `questions`, when it is among the `coming`."""

    def __init__(self, recyclable: Recyclable, over: float, done: Done, coming: list[_Reset]) -> None:
        self._recyclable = recyclable
        self._over = over
        self._done = done
        self._coming = coming
        self._found: Found | None = None
        self._vacuuming: Vacuuming | None = None
        self._vacuums = 0

    def questions(self, server: int) -> Sequence[Question]:
        """The next statements, for a server of this major version."""
        if self._vacuuming is None:
            return [(self._call(), self._looked)]
        self._vacuums += 1
        tables, _, freeze = self._vacuuming
        return [
            (vacuum_statement(tables, server, freeze=freeze), _ignore),
            (pages_statement(each.oid for each in tables), self._vacuumed),
        ]

    def stop(self) -> None:
        """Leaves the rest to others."""
        self._done(False, self._found)

    def _call(self) -> str:
        known, expected = self._recyclable, self._recyclable.pristine.fingerprint.quick_value
        return call_with(known.name, expected, known.since, time.monotonic() - self._over)

    def _looked(self, answer: Answer) -> None:
        found = Found.told(answer.rows[0]) if answer.rows and not answer.error else None
        if found is None or found.state not in (UNTOUCHED, EMPTIED):
            self.stop()
            return
        self._recyclable.looked_at(found)
        if found.state == UNTOUCHED:
            self._done(True, None)
            return
        self._found, self._vacuuming = found, Vacuuming.after(found, self._recyclable.pristine)
        if not _is_plain(found, self._recyclable.pristine):
            self.stop()
        elif self._vacuuming.tables:
            self._coming.append(self)
        else:
            self._done(True, None)

    def _vacuumed(self, answer: Answer) -> None:
        if not answer.error and self._is_finished(answer.rows):
            self._done(True, None)
        elif not answer.error and self._vacuums < MOST_VACUUMS:
            self._coming.append(self)
        else:
            self.stop()

    def _is_finished(self, rows: Sequence[Row]) -> bool:
        assert self._vacuuming is not None
        told = {int(oid or 0): (int(size or 0), visible == "t") for oid, size, visible in rows}
        wanted = {table.oid: (self._vacuuming.sizes.get(table.oid, 0), True) for table in self._vacuuming.tables}
        return told == wanted


def _ignore(_: Answer) -> None:
    """What came of a VACUUM is asked afterwards."""


def _is_plain(found: Found, pristine: Pristine) -> bool:
    """Whether a VACUUM is all that is left to do."""
    if found.touched or found.views or found.large or found.grown:
        return False
    return not any(pristine.inventory.shaped.get(oid) for oid in (*found.dirty, *found.gained))
