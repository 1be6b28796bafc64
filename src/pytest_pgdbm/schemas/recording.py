"""What pgdbm's runner sent to the server for one service, so that it can be sent again for other schemas.

A recording is made of templates: SQL in which the names of the set's schemas are places. That putting other names
there gives what pgdbm would have rendered for them is not taken for granted: each migration is rendered a second
time, for other names, and its template must give the same text. It does not if somebody's SQL holds the generated
name of a schema by other means; such a set is not recorded, and the runner builds it each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_pgdbm.ground.names import quote_literal

_ARGUMENT = re.compile(r"\$([0-9]+)")
_END = ";\n"


class Template(NamedTuple):
    """SQL in which schemas are places: text and places in turn, a place being the number of a schema of the set."""

    parts: tuple[str | int, ...]

    @classmethod
    def of(cls, sql: str, schemas: Sequence[str]) -> Template:
        """The template that gives `sql` for these schemas."""
        longest_first = sorted(schemas, key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", sql)
        return cls(tuple(schemas.index(piece) if at % 2 else piece for at, piece in enumerate(pieces)))

    def filled(self, schemas: Sequence[str]) -> str:
        """The SQL for these schemas, in the same order."""
        return "".join(schemas[part] if isinstance(part, int) else part for part in self.parts)


class Recording(NamedTuple):
    """What made the schemas of a set: for each service the messages to the server, in their order."""

    members: Mapping[str, tuple[Template, ...]]


class Recorder:
    """Takes down what pgdbm sends for one service, as messages to the server.

    A migration is a message of its own, as it was, and so is each statement of one without transaction: when a message
    came is what `now()` and `statement_timestamp()` say, and where it ends is where a transaction may. What pgdbm sends
    between two migrations is one message.
    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
    """

    def __init__(self, schemas: Sequence[str]) -> None:
        self._schemas = schemas
        self._sent: list[str] = []
        self._between: list[str] = []
        self._since: int | None = None
        self._given_up = False

    @property
    def messages(self) -> tuple[Template, ...] | None:
        """What was sent, None if it cannot be sent again."""
        self._end_message()
        return None if self._given_up else tuple(Template.of(each, self._schemas) for each in self._sent)

    def give_up(self) -> None:
        """Something happens that a recording does not hold."""
        self._given_up = True

    def check(self, render: Callable[[str, Sequence[str]], str], texts: Sequence[str]) -> None:
        """Gives up unless filling in the template of each text is the same as rendering the text.

        `render` fills in pgdbm's templates, for given names of the schemas.
        """
        others = [f"pgdbm_another_name_{number}" for number in range(len(self._schemas))]
        for text in texts:
            if Template.of(render(text, self._schemas), self._schemas).filled(others) != render(text, others):
                self.give_up()

    def begin(self) -> None:
        """A transaction begins."""
        self._since = len(self._between)
        self._between.append("begin")

    def commit(self) -> None:
        """The transaction ends."""
        self._since = None
        self._between.append("commit")

    @property
    def makes(self) -> bool:
        """Whether pgdbm has made something in this transaction, if it was not there."""
        return self._since is not None and any(map(_creates, self._between[self._since :]))

    def nothing_made(self) -> None:
        """It was all there: what would make it can be left out."""
        self._between[self._since :] = [each for each in self._between[self._since :] if not _creates(each)]

    def migration(self, sql: str) -> None:
        """A whole migration was sent, or a statement of one without transaction."""
        self._end_message()
        self._sent.append(sql)

    def statement(self, sql: str, arguments: Sequence[Any]) -> None:
        """A statement of pgdbm's own was sent."""
        literals = [_literal(argument) for argument in arguments]
        if None in literals:
            self.give_up()
        elif literals:
            sql = _ARGUMENT.sub(lambda match: str(literals[int(match[1]) - 1]), sql)
        if self._since is None:
            self._end_message()
        self._between.append(sql)
        if self._since is None:
            self._end_message()

    def _end_message(self) -> None:
        if self._between:
            self._sent.append(_END.join(self._between))
        self._between = []
        self._since = None if self._since is None else 0


def _creates(sql: str) -> bool:
    return sql.lstrip().upper().startswith("CREATE ")


def _literal(value: Any) -> str | None:
    if isinstance(value, str):
        return quote_literal(value)
    return str(value) if type(value) is int else None
