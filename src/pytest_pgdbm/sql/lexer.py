"""PostgreSQL's tokens: enough of its scanner to tell code from comments, strings and bodies.

The rules are those of https://www.postgresql.org/docs/current/sql-syntax-lexical.html with
`standard_conforming_strings` on, which is the default. Nothing here raises: what is not
terminated runs to the end of the text, and the server says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal[
    "space",
    "comment",
    "string",
    "dollar",
    "quoted",
    "number",
    "param",
    "word",
    "template",
    "symbol",
]
"""`string` is any single-quoted literal with its prefix, `dollar` a `$tag$…$tag$` literal, `quoted`
a quoted identifier, `param` a `$1`, `symbol` one character of anything else."""


class Token(NamedTuple):
    """A piece of SQL: `sql[start:end] == text`."""

    kind: Kind
    text: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these key words, in any case of letters."""
        return self.kind == "word" and self.text.lower() in words

    def is_symbol(self, symbol: str) -> bool:
        """Whether it is this one character, outside of strings and comments."""
        return self.kind == "symbol" and self.text == symbol

    @property
    def name(self) -> str | None:
        """The identifier as PostgreSQL stores it; None for what is not an identifier."""
        if self.kind == "word":
            return self.text.lower()
        if self.kind == "quoted":
            inner = _INSIDE_QUOTES.match(self.text, self.text.index('"') + 1)
            return inner[0].replace('""', '"') if inner else ""
        return None


class Statement(NamedTuple):
    """One statement without its `;` and without the space and comments around it.

    `start` is its offset in the text that it was cut from, `line` the line of its first token,
    counted from 1.
    """

    text: str
    start: int
    line: int


# The order matters where one kind starts like another: E'…' before words, $tag$ before symbols.
# Each repetition ends in an alternative that holds at the end of the text as well, so that no
# pattern ever goes back: reading is linear in the length of the text.
# Letters, `_` and all that is not ASCII are said by what they are not: as ranges they take ten milliseconds to compile.
_TOKEN = re.compile(
    r"""
      (?P<space> [ \t\n\r\f\v]+ )
    | (?P<comment> --[^\n\r]* )
    | (?P<nested> /\* )
    | (?P<escape> [eE]'(?: [^'\\]+ | '' | \\.? )*(?: '|\Z )
        # a literal goes on after a newline, under the rules of its first piece
        (?: [ \t\f\v]*[\n\r][ \t\n\r\f\v]*'(?: [^'\\]+ | '' | \\.? )*(?: '|\Z ) )* )
    | (?P<string> (?: [bBxXnN] | [uU]& )?'(?: [^']+ | '' )*(?: '|\Z ) )
    | (?P<quoted> (?: [uU]& )?"(?: [^"]+ | "" )*(?: "|\Z ) )
    | (?P<dollar> \$(?: [^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]* )?\$ )
    | (?P<param> \$[0-9]+ )
    | (?P<template> \{\{[A-Za-z0-9_.]*\}\} )
    | (?P<word> [^\x00-@\[-^`{-\x7f][^\x00-\#%-/:-@\[-^`{-\x7f]* )
    | (?P<number> (?: [0-9][0-9A-Za-z_]*(?: \.(?!\.)[0-9_]* )? | \.[0-9]+ )
        (?: [eE]?(?<=[eE])[+-]?[0-9]+ )? )
    | (?P<symbol> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_INSIDE_QUOTES = re.compile(r'(?:[^"]+|"")*')
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_KINDS: dict[str, Kind] = {"escape": "string", "nested": "comment"}
_SILENT = ("space", "comment")


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of `sql`, which together are the whole text without a gap."""
    position = 0
    while match := _TOKEN.match(sql, position):
        group = match.lastgroup or "symbol"
        end = match.end()
        if group == "nested":
            end = _comment_end(sql, end)
        elif group == "dollar":
            end = _dollar_end(sql, match.group(), end)
        yield Token(_KINDS.get(group, group), sql[position:end], position, end)  # type: ignore[arg-type]
        position = end


def _comment_end(sql: str, position: int) -> int:
    """Where the block comment that was opened before `position` ends; comments nest."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def _dollar_end(sql: str, tag: str, position: int) -> int:
    """Where the literal that `tag` opened before `position` ends."""
    found = sql.find(tag, position)
    return len(sql) if found < 0 else found + len(tag)


def statements(sql: str) -> list[Statement]:
    """The statements of `sql`, cut at each `;` that is not inside of one; empty ones are left out.

    A `;` is inside of a statement between parentheses (`CREATE RULE … DO (…; …)`) and in the body
    of an SQL-standard function (`BEGIN ATOMIC …; END`).
    """
    found = []
    line, counted = 1, 0
    for group in grouped(sql):
        start, end = group[0].start, group[-1].end
        line += sql.count("\n", counted, start)
        counted = start
        found.append(Statement(sql[start:end], start, line))
    return found


def holds_statement(sql: str) -> bool:
    """Whether there is anything in `sql` but space, comments and `;`; read no further than to the first of it."""
    return any(token.kind not in _SILENT and not token.is_symbol(";") for token in tokens(sql))


def grouped(sql: str) -> Iterator[list[Token]]:
    """The tokens of each statement of `sql`, without space, comments and the `;` at its end."""
    group: list[Token] = []
    inside = _Inside()
    for token in tokens(sql):
        if token.kind in _SILENT:
            continue
        if token.is_symbol(";") and not inside.of_anything:
            if group:
                yield group
            group, inside = [], _Inside()
            continue
        group.append(token)
        inside.step(token, group)
    if group:
        yield group


class _Inside:
    """How deep in parentheses and in `BEGIN ATOMIC … END` a statement is, as psql counts it."""

    def __init__(self) -> None:
        self._parentheses = 0
        self._blocks = 0

    @property
    def of_anything(self) -> bool:
        return self._parentheses > 0 or self._blocks > 0

    def step(self, token: Token, group: list[Token]) -> None:
        """Takes the next token, already the last of `group`, into account."""
        if token.is_symbol("("):
            self._parentheses += 1
        elif token.is_symbol(")"):
            self._parentheses = max(0, self._parentheses - 1)
        elif token.kind == "word":
            self._step_word(token, group)

    def _step_word(self, token: Token, group: list[Token]) -> None:
        if self._blocks:
            self._blocks += token.is_word("case", "begin") - token.is_word("end")
        elif token.is_word("atomic") and len(group) > 1 and group[-2].is_word("begin"):
            self._blocks = 1


def line_of(sql: str, position: int) -> int:
    """The line, counted from 1, of the character at the offset `position`, counted from 0."""
    return sql.count("\n", 0, max(0, position)) + 1
