"""Gives sets back in the thread of the tests, by messages that nobody waits for: what nearly every test needs.

At the end of a test the call of the set's function goes out, at the end of the next one a VACUUM of what the function
emptied, with the question whether it has finished; the answer is there at the end of the one after that. Whatever is
not as plain as that goes on in the private loop, from what was found by then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.connections.line import Answer, Line, Question
from pytest_pgdbm.schemas.recycling.function import EMPTIED, UNTOUCHED, Found
from pytest_pgdbm.schemas.recycling.pristine import Pristine
from pytest_pgdbm.schemas.recycling.recyclable import Recyclable
from pytest_pgdbm.schemas.recycling.vacuuming import FLUSH, Vacuuming, finished_call, vacuum_statement

_POLL, MOST_POLLS = 0.0005, 200
"""Seconds between two looks at what has come, and how many there are, before more than messages is done."""

MOST_VACUUMS = 2
"""So often a VACUUM is sent; that of the private loop waits for what is in its way."""

Done = Callable[[bool, "Found | None"], None]
"""Called with whether a set is as it was; if not, with what its function has found, None if it is to be called anew."""


class Overlapped:
    """The sets of one database that are on their way back over its connection for administration."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._next: list[_Reset] = []
        self._under_way: set[_Reset] = set()
        admin.on_loss.append(self._stop_all)

    def begin(self, recyclable: Recyclable, over: float, done: Done) -> bool:
        """Has a set given back by the next `go_on` that finds the session lent.

        Returns False if the session does not know the set, or nobody is about to lend it. `over` is when its test
        ended, by `time.monotonic()`. `done` is called in whichever thread hears of it.
        """
        reset = _Reset(recyclable, over, self._next, lambda *came: self._came(reset, done, *came))
        return self._admin.with_line(lambda _: self._added(reset))

    def go_on(self) -> bool:
        """Hears what the server has done by now, and sends what comes next; from any thread, without waiting.

        Returns whether answers are to come.
        """
        return bool(self._under_way) and self._admin.with_line(self._gone_on)

    async def finish(self) -> None:
        """Has all come back, or go on elsewhere what takes longer; to be run in the private loop."""
        await come(self.go_on)
        if self._under_way or self._admin.is_given_up:
            async with self._admin.resetter():
                pass

    def _came(self, reset: _Reset, done: Done, as_it_was: bool, found: Found | None) -> None:
        self._under_way.discard(reset)
        done(as_it_was, found)

    def _added(self, reset: _Reset) -> bool:
        if not (self._admin.is_lent_soon and reset.is_known(self._admin)):
            return False
        self._under_way.add(reset)
        self._next.append(reset)
        return True

    def _gone_on(self, line: Line | None) -> bool:
        if line is None or line.broken:
            return False
        line.listen()
        going, self._next[:] = tuple(self._next), ()
        line.ask([question for reset in going for question in reset.questions(line.server)])
        return line.is_busy

    def _stop_all(self) -> None:
        self._admin.with_line(lambda _: self._next.clear())
        for reset in list(self._under_way):
            reset.stop()


async def come(go_on: Callable[[], bool], until: Callable[[], bool] = lambda: False) -> None:
    """Calls `go_on` until nothing is to come or `until` is true; for a tenth of a second at most."""
    for _ in range(MOST_POLLS):
        if not go_on() or until():
            break
        await asyncio.sleep(_POLL)


class _Reset:
    """A set on its way back. What is to be sent for it is said by `questions`, when it is among the `coming`."""

    def __init__(self, recyclable: Recyclable, over: float, coming: list[_Reset], done: Done) -> None:
        self._recyclable = recyclable
        self._over = over
        self._coming = coming
        self._done = done
        self._found: Found | None = None
        self._vacuuming: Vacuuming | None = None
        self._vacuums = 0

    def is_known(self, admin: Admin) -> bool:
        """Whether the session has the set's function, and is the one in which the set was made."""
        return (self._recyclable.session, self._recyclable.losses) == (admin.session, admin.losses)

    def questions(self, server: int) -> Sequence[Question]:
        """The next statements, for a server of this major version."""
        if self._vacuuming is None:
            return [(self._recyclable.call(time.monotonic() - self._over), self._looked)]
        # What was in the way of the first one may have been a commit of somebody's that is not on disk.
        before = [(FLUSH, _ignore)] if self._vacuums else []
        self._vacuums += 1
        tables, _, freeze = self._vacuuming
        return [
            *before,
            (vacuum_statement(tables, server, freeze=freeze), _ignore),
            (finished_call(self._recyclable.finished, self._vacuuming), self._vacuumed),
        ]

    def stop(self) -> None:
        """Leaves the rest to others."""
        self._done(False, self._found)

    def _looked(self, answer: Answer) -> None:
        found = Found.told(answer.rows[0]) if answer.rows and not answer.error else None
        if found is None or found.state not in (UNTOUCHED, EMPTIED):
            self.stop()
            return
        self._recyclable.looked_at(found)
        if found.state == UNTOUCHED:
            self._done(True, None)
            return
        self._found, self._vacuuming = found, self._recyclable.pristine.vacuuming(found)
        if not _is_plain(found, self._recyclable.pristine):
            self.stop()
        elif self._vacuuming.tables:
            self._coming.append(self)
        else:
            self._done(True, None)

    def _vacuumed(self, answer: Answer) -> None:
        if list(answer.rows) == [("t",)]:
            self._done(True, None)
        elif not answer.error and self._vacuums < MOST_VACUUMS:
            self._coming.append(self)
        else:
            self.stop()


def _ignore(_: Answer) -> None:
    """What came of a VACUUM is asked afterwards."""


def _is_plain(found: Found, pristine: Pristine) -> bool:
    """Whether a VACUUM is all that is left to do."""
    if found.touched or found.views or found.large or found.grown:
        return False
    return not any(pristine.inventory.shaped.get(oid) for oid in (*found.dirty, *found.gained))
