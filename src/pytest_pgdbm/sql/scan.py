"""What a migration asks for or names outside of its schema: extensions, and other schemas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_pgdbm.sql.lexer import Token, grouped, line_of
from pytest_pgdbm.sql.templates import dollar_body


class Extension(NamedTuple):
    """A `CREATE EXTENSION` statement: `sql[start:end]`, without its `;`."""

    name: str
    line: int
    start: int
    end: int
    if_not_exists: bool


class QualifiedName(NamedTuple):
    """A `schema.name` written out in SQL, as PostgreSQL stores the two, and its line from 1."""

    schema: str
    name: str
    line: int


def extensions_created(sql: str) -> list[Extension]:
    """The `CREATE EXTENSION` statements of `sql`; not those inside of function bodies."""
    if "extension" not in sql.lower():
        return []
    return [found for group in grouped(sql) if (found := _extension(group, sql))]


def _extension(group: Sequence[Token], sql: str) -> Extension | None:
    if not _starts(group, "create", "extension"):
        return None
    exists = _starts(group[2:], "if", "not", "exists")
    rest = group[5:] if exists else group[2:]
    name = rest[0].name if rest else None
    if name is None:
        return None
    start, end = group[0].start, group[-1].end
    return Extension(name, line_of(sql, start), start, end, exists)


def _starts(group: Sequence[Token], *words: str) -> bool:
    return len(group) >= len(words) and all(token.is_word(word) for token, word in zip(group, words, strict=False))


def with_existing_extensions(sql: str) -> str:
    """`sql` with `IF NOT EXISTS` in each `CREATE EXTENSION`; lines stay as they are."""
    if "extension" not in sql.lower():
        return sql
    pieces, done = [], 0
    for group in grouped(sql):
        found = _extension(group, sql)
        if found and not found.if_not_exists:
            pieces += [sql[done : group[1].end], " IF NOT EXISTS"]
            done = group[1].end
    return "".join(pieces) + sql[done:]


# The words after which a relation, function or type is named, and what may stand between.
_BEFORE_A_NAME = (
    *("from", "join", "update", "table", "references", "truncate", "copy", "view"),
    *("sequence", "index", "function", "procedure", "type", "domain"),
)
_BEFORE_A_LIST = ("from", "table", "truncate", "on")
_BETWEEN = ("if", "not", "exists", "only", "lateral", "concurrently")
# CREATE INDEX … ON t: after these the first ON names a relation; any other ON joins by columns.
_HAS_ON = ("index", "trigger", "policy", "rule")
_FROM_OF_ARGUMENTS = ("extract", "substring", "trim", "overlay", "position")
_BODY_AFTER = ("as", "do", "execute")
_SQL_LANGUAGES = ("sql", "plpgsql", None)


def schemas_named(sql: str) -> list[QualifiedName]:
    """Each `schema.name` written out where only a relation, function or type can be named.

    Function bodies in SQL and PL/pgSQL are read too. `users.email` elsewhere is a column of
    something called `users` and not reported, nor are PostgreSQL's own schemas, templates,
    comments and strings. Rather one is missed than one too many reported.
    """
    return list(_schemas(sql, 0))


def _schemas(sql: str, lines_before: int) -> Iterator[QualifiedName]:
    for group in grouped(sql):
        reader = _Reader(group)
        for at in reader.name_places():
            token = group[at]
            schema, name = _qualified(group, at)
            if not _is_systems(schema):
                line = lines_before + line_of(sql, token.start)
                yield QualifiedName(schema, name, line)
        if reader.language in _SQL_LANGUAGES:
            for body, start in reader.bodies():
                yield from _schemas(body, lines_before + line_of(sql, start) - 1)


def _is_systems(schema: str) -> bool:
    """PostgreSQL keeps names that start with `pg_` for itself."""
    return schema == "information_schema" or schema.startswith("pg_")


def _qualified(group: Sequence[Token], at: int) -> tuple[str, str]:
    """The last two parts of the dotted name that starts at `at`: a database may stand before."""
    parts = []
    while at < len(group) and (name := group[at].name) is not None:
        parts.append(name)
        if not _is_symbol(group, at + 1, "."):
            break
        at += 2
    return parts[-2], parts[-1]


def _is_symbol(group: Sequence[Token], at: int, symbol: str) -> bool:
    return 0 <= at < len(group) and group[at].is_symbol(symbol)


class _Reader:
    """Finds in one statement the places where a schema-qualified name starts, and the bodies."""

    def __init__(self, group: Sequence[Token]) -> None:
        self._group = group
        self._openers = _openers(group)
        self._naming_ons = _naming_ons(group)

    @property
    def language(self) -> str | None:
        """The language of the function or `DO` block that the statement makes; None if not said."""
        if self._word(0, "create", "do"):
            for at, token in enumerate(self._group[:-1]):
                if token.is_word("language"):
                    return self._group[at + 1].text.strip("'\"").lower()
        return None

    def bodies(self) -> Iterator[tuple[str, int]]:
        """The text of each function body of the statement, and the offset where it starts."""
        for at, token in enumerate(self._group):
            if token.kind == "dollar" and (self._word(at - 1, *_BODY_AFTER) or self._word(0, "do")):
                yield dollar_body(token)
            elif token.kind == "string" and self._word(at - 1, "as") and self._makes_function():
                opening = token.text.index("'") + 1
                yield token.text[opening:-1].replace("''", "'"), token.start + opening

    def name_places(self) -> Iterator[int]:
        """The index of the first token of each dotted name that is a relation, function or type."""
        for at in range(len(self._group) - 2):
            if self._starts_dotted(at) and self._is_place(at):
                yield at

    def _makes_function(self) -> bool:
        head = self._group[:4]
        return self._word(0, "create") and any(t.is_word("function", "procedure") for t in head)

    def _starts_dotted(self, at: int) -> bool:
        return (
            self._group[at].name is not None
            and _is_symbol(self._group, at + 1, ".")
            and self._group[at + 2].name is not None
            and not _is_symbol(self._group, at - 1, ".")
        )

    def _is_place(self, at: int) -> bool:
        after = at + 3
        while _is_symbol(self._group, after, "."):
            after += 2
        if _is_symbol(self._group, after, "%"):
            return self._word(after + 1, "rowtype")
        return (
            _is_symbol(self._group, after, "(")
            or self._follows_cast(at)
            or self._follows_key_word(at)
            or self._continues_list(at)
        )

    def _follows_cast(self, at: int) -> bool:
        """Whether a type stands here: `x::auth.mood`, `CAST(x AS auth.mood)`."""
        if self._word(at - 1, "as"):
            return True
        return _is_symbol(self._group, at - 1, ":") and _is_symbol(self._group, at - 2, ":")

    def _follows_key_word(self, at: int) -> bool:
        before = self._before(at)
        if self._word(before, "from"):
            return self._names_relation_from(before)
        if self._word(before, "on"):
            return before in self._naming_ons
        if self._word(before, *_BEFORE_A_NAME):
            return not _is_symbol(self._group, before - 1, ".")
        return self._word_pair(before, "insert", "into") or self._follows_table_clause(before)

    def _before(self, at: int) -> int:
        """The place before `at`, words as `only` passed over."""
        at -= 1
        while self._word(at, *_BETWEEN):
            at -= 1
        return at

    def _names_relation_from(self, at: int) -> bool:
        """Whether this FROM is not the one of `extract(… FROM …)` or `IS DISTINCT FROM`."""
        arguments = self._openers[at] in _FROM_OF_ARGUMENTS
        return not arguments and not self._word(at - 1, "distinct")

    def _follows_table_clause(self, before: int) -> bool:
        """Whether a table is named after `MERGE INTO`, `PARTITION OF`, `(LIKE` or `INHERITS (`."""
        if self._word_pair(before, "merge", "into") or self._word_pair(before, "partition", "of"):
            return True
        if self._word(before, "like"):
            return _is_symbol(self._group, before - 1, "(")
        return _is_symbol(self._group, before, "(") and self._word(before - 1, "inherits")

    def _continues_list(self, at: int) -> bool:
        """Whether it stands after a comma in a list of relations: `FROM users u, auth.keys`."""
        while _is_symbol(self._group, comma := self._before(at), ","):
            item = self._item_start(comma - 1)
            if item is None:
                return False
            if self._word(item - 1, *_BEFORE_A_LIST, *_BETWEEN):
                return self._follows_key_word(item)
            at = item
        return False

    def _item_start(self, last: int) -> int | None:
        """Where the list item `name`, `a.name`, `name alias` or `name AS alias` starts."""
        start = self._dotted_start(last)
        if start is None or self._word(start - 1, *_BEFORE_A_LIST, *_BETWEEN):
            return start
        if _is_symbol(self._group, start - 1, ","):
            return start
        return self._dotted_start(start - 2 if self._word(start - 1, "as") else start - 1)

    def _dotted_start(self, last: int) -> int | None:
        """Where the dotted name or template that ends with the token at `last` starts."""
        if last < 0 or (self._group[last].name is None and self._group[last].kind != "template"):
            return None
        while _is_symbol(self._group, last - 1, "."):
            last -= 2
        return last

    def _word(self, at: int, *words: str) -> bool:
        return 0 <= at < len(self._group) and self._group[at].is_word(*words)

    def _word_pair(self, at: int, first: str, second: str) -> bool:
        return self._word(at, second) and self._word(at - 1, first)


def _openers(group: Sequence[Token]) -> list[str | None]:
    """For each token the name before the parenthesis that it is in, as `extract` in `extract(`."""
    openers: list[str | None] = []
    stack: list[str | None] = [None]
    for at, token in enumerate(group):
        if token.is_symbol("("):
            stack.append(group[at - 1].name if at else None)
        elif token.is_symbol(")") and len(stack) > 1:
            stack.pop()
        openers.append(stack[-1])
    return openers


def _naming_ons(group: Sequence[Token]) -> set[int]:
    """The places of the ONs that a relation follows: of indexes, triggers, policies and grants."""
    found: set[int] = set()
    waiting = False
    for at, token in enumerate(group):
        if token.is_word(*_HAS_ON):
            head = group[max(0, at - 4) : at]
            waiting = waiting or any(t.is_word("create", "drop", "alter") for t in head)
        elif token.is_word("grant", "revoke"):
            waiting = True
        elif token.is_word("on") and waiting:
            found.add(at)
            waiting = False
    return found
