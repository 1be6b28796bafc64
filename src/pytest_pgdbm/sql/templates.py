"""pgdbm's templates: which services a text names, and the text with schemas in their place.

`{{tables.x}}` and `{{schema}}` mean the manager's own schema and are left to pgdbm.
`{{tables.users.x}}` names the schema `users` literally; for a test that is the schema that stands
for the service `users`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pytest_pgdbm.ground.names import identifier
from pytest_pgdbm.sql.lexer import Token, line_of, tokens

# As pgdbm's core.EXPLICIT_TABLE_PATTERN.
_EXPLICIT = re.compile(r"\{\{tables\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)\}\}")
_START = "{{tables."


class Reference(NamedTuple):
    """A `{{tables.<service>.<table>}}`, and its line in the text, counted from 1."""

    service: str
    table: str
    line: int


def services_named(sql: str) -> list[Reference]:
    """Each `{{tables.<service>.<table>}}` of `sql` in order, also in strings and function bodies.

    Those in SQL comments are left out, since nothing comes of them.
    """
    return list(_references(sql, 0, sql)) if _START in sql else []


def _references(text: str, offset: int, sql: str) -> Iterator[Reference]:
    for token in tokens(text):
        if token.kind == "comment" or _START not in token.text:
            continue
        if token.kind == "dollar":
            body, at = dollar_body(token)
            yield from _references(body, offset + at, sql)
            continue
        for match in _EXPLICIT.finditer(token.text):
            line = line_of(sql, offset + token.start + match.start())
            yield Reference(match[1], match[2], line)


def dollar_body(token: Token) -> tuple[str, int]:
    """What stands between the tags of a dollar-quoted literal, and the offset where that starts."""
    tag = token.text[: token.text.index("$", 1) + 1]
    closed = len(token.text) >= 2 * len(tag) and token.text.endswith(tag)
    body = token.text[len(tag) : -len(tag) if closed else None]
    return body, token.start + len(tag)


def service_for(name: str, services: Iterable[str]) -> str | None:
    """The service that the word `name` of a template means, or None.

    A service whose own name cannot stand in a template (`order-items`) is meant by its plain form
    (`order_items`), unless two services have the same one.
    """
    known = list(services)
    if name in known:
        return name
    plain = [service for service in known if identifier(service) == name]
    return plain[0] if len(plain) == 1 else None


def with_schemas(sql: str, schemas: Mapping[str, str]) -> str:
    """`sql` with the schema that stands for the service in each `{{tables.<service>.<table>}}`.

    `schemas` has the schema of each service. A name that is none of them stays, as do the lines.
    """
    if _START not in sql:
        return sql

    def replaced(match: re.Match[str]) -> str:
        service = service_for(match[1], schemas)
        return match[0] if service is None else f"{{{{tables.{schemas[service]}.{match[2]}}}}}"

    return _EXPLICIT.sub(replaced, sql)
