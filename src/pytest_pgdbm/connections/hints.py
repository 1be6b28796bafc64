"""What the server's errors about names mean in a test, added to its own words.

pgdbm pins the search path of a shared pool to `pg_catalog`, so that a forgotten `{{tables.x}}` fails, and a template
with the name of another service becomes the name of a schema. The server knows neither.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import asyncpg

_RELATION = re.compile(r'relation "(?:(?P<schema>[^".]+)\.)?(?P<name>[^".]+)" does not exist')
_SCHEMA = re.compile(r'schema "(?P<schema>[^"]+)" does not exist')
_FROM_EXTENSION = re.compile(
    r'type "(?P<type>[^".]+)" does not exist'
    r"|function (?P<function>[^\".(]+)\(.*\) does not exist"
    r'|operator class "(?P<opclass>[^".]+)" does not exist for .*'
)
_OPERATOR = re.compile(r"operator does not exist: (?:(?P<left>.*) )?(?P<operator>[-+*/<>=~!@#%^&|`?]+) (?P<right>.*)")
# What PostgreSQL has itself for so many types, or for JSON, that types which do not fit are the likelier reason.
_PLAIN_OPERATORS = {
    *("=", "<>", "!=", "<", ">", "<=", ">=", "+", "-", "*", "/", "||"),
    *("~~", "!~~", "~~*", "!~~*", "~", "!~", "~*", "!~*"),
    *("->", "->>", "#>", "#>>", "#-", "@>", "<@", "?", "?|", "?&", "&&", "@?"),
}
_WAY = "set pgdbm_search_path = pg_catalog, public here and shared_pool_search_path in the application"


def explain(error: asyncpg.PostgresError, services: Mapping[str, str], path: str | None = None) -> None:
    """Adds to the error's hint what it means here, if it is about a name that was not found.

    `services` has the schema of each service that templates may name; `path` is the search path where it is not the
    pool's own. asyncpg's `str(error)` shows the hint, and so do pgdbm's QueryError and MigrationError.
    """
    message = str(error.args[0]) if error.args else ""
    text = _meaning(error, message, services, path)
    said = getattr(error, "hint", None) or ""
    if text and text not in said:
        error.hint = f"{said} {text}".lstrip()


def _meaning(error: asyncpg.PostgresError, message: str, services: Mapping[str, str], path: str | None) -> str | None:
    if isinstance(error, (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)):
        return _missing(message, services, path)
    if isinstance(error, asyncpg.InsufficientPrivilegeError) and "pg_catalog" in message:
        return (
            "a table, type or function is created without a schema: write {{tables.x}}, or {{schema}}.x for what is not"
            " a table. Only pg_catalog is on the search path of a shared pool (pgdbm_search_path says another)"
        )
    if isinstance(error, (asyncpg.UndefinedObjectError, asyncpg.UndefinedFunctionError)):
        return _of_an_extension(message) or _operator_of_an_extension(message, services)
    return None


def _missing(message: str, services: Mapping[str, str], path: str | None) -> str | None:
    """For a table that is not there, or its schema."""
    found = _RELATION.fullmatch(message) or _SCHEMA.fullmatch(message)
    if found is None:
        return None
    schema = found["schema"]
    if schema is not None:
        return None if schema in services.values() else _no_such_service(schema, services)
    if path is not None and any(f'"{each}"' in path or each in path.split(", ") for each in services.values()):
        return None  # a bare name is looked for in the service's own schema
    return f"write {{{{tables.{found['name']}}}}}: a name without it is not found on a shared pool"


def _no_such_service(name: str, services: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, services, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    return (
        f"if {{{{tables.{name}.…}}}} is meant for a service: those that can be named here are"
        f" {', '.join(map(repr, sorted(services)))}{meant} needs= ties another to this one"
    )


def _of_an_extension(message: str) -> str | None:
    """For a type, function or operator class, which is likely one of an extension's in `public`."""
    found = _FROM_EXTENSION.fullmatch(message)
    if found is None:
        return None
    name = found["type"] or found["function"] or found["opclass"]
    return f"If an extension brings it, write public.{name}, or {_WAY}; the service's own is {{{{schema}}}}.{name}"


def _operator_of_an_extension(message: str, services: Mapping[str, str]) -> str | None:
    found = _OPERATOR.fullmatch(message)
    if found is None or not (found["operator"] not in _PLAIN_OPERATORS or _is_foreign(found, services)):
        return None
    return f"If an extension brings it, write operator(public.{found['operator']}), or {_WAY}"


def _is_foreign(operator: re.Match[str], services: Mapping[str, str]) -> bool:
    """Whether one of its types is neither PostgreSQL's nor a service's: the server writes its schema before it."""
    schemas = {each.rpartition(".")[0].strip('"') for each in (operator["left"], operator["right"]) if each}
    return not schemas <= {"", *services.values()}
