"""What somebody gave for a setting, read into its own type; loaded only where something was given."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.ground.masks import HIDDEN, SecretUrl, masked
from pytest_pgdbm.settings import OLDEST_SERVER, Option

_OWN_SCHEMA = "$service"
_LONGEST = 7 * 24 * 60


class Given(NamedTuple):
    """A raw value of an option, where it came from, and the folder at which a relative path starts.

    `source` is the place as a setting names it, `where` as a message does.
    """

    option: Option
    raw: object
    source: str
    where: str
    base: Path | None

    @property
    def text(self) -> str:
        """The value as text; lines of several."""
        raw = self.raw
        if isinstance(raw, Iterable) and not isinstance(raw, str):
            return "\n".join(str(line) for line in raw).strip()
        return str(raw).strip()

    def wrong(self, why: str) -> ConfigError:
        """The error that says what is wrong with it."""
        return ConfigError(f"{self.where}: {why}")


def read(given: Given) -> object:
    """The value in its own type; an empty one is the default. Raises ConfigError if it is not valid."""
    if not given.text:
        return given.option.default
    if "://" in given.text and "url" not in given.option.stem:
        raise given.wrong("this is a URL; give it as --pgdbm-url, PGDBM_URL or pgdbm_url in the ini")
    reader = _choice if given.option.choices else _READERS[given.option.stem]
    return reader(given)


def _choice(given: Given) -> str:
    choices = given.option.choices
    text = given.text
    if text in choices:
        return text
    near = difflib.get_close_matches(text.lower(), choices, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    raise given.wrong(f"{text!r} is not known{meant} Valid are {', '.join(choices)}")


def _server_bin(given: Given) -> str:
    try:
        path = Path(given.text).expanduser()
    except RuntimeError as error:
        raise given.wrong(f"{given.text!r}: {error}") from error
    return str((given.base or Path.cwd()) / path)


def _server_version(given: Given) -> str:
    if not re.fullmatch(r"[1-9][0-9]?(\.[0-9]{1,3}){0,2}", given.text):
        raise given.wrong(f"{given.text!r} is not a PostgreSQL version; write it as 16 or 16.4")
    if int(given.text.partition(".")[0]) < OLDEST_SERVER:
        raise given.wrong(f"PostgreSQL {given.text} is too old; pytest-pgdbm needs {OLDEST_SERVER} or later")
    return given.text


def _image(given: Given) -> str:
    if re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", given.text, re.ASCII):
        return given.text
    raise given.wrong(f"{given.text!r} is not the name of an image; write it as postgres:17")


def _extensions(given: Given) -> tuple[str, ...]:
    names = [name for name in re.split(r"[,\s]+", given.text) if name]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", name):
            raise given.wrong(
                f"{name!r} is not the name of an extension;"
                " write names like pgcrypto or uuid-ossp, separated by commas or spaces"
            )
    return tuple(dict.fromkeys(names))


def _search_path(given: Given) -> str:
    problem = path_problem(given.text)
    if problem is not None:
        raise given.wrong(problem)
    return ", ".join(_entries(given.text))


def path_problem(text: str) -> str | None:
    """What is wrong with a search path, or None."""
    entries = _entries(text)
    for entry in entries:
        if entry != _OWN_SCHEMA and not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}", entry):
            return (
                f"{entry!r} cannot stand in the search path; give plain schema names and $service,"
                " separated by commas, as 'pg_catalog, public', or the one word none"
            )
    if "none" in entries and len(entries) > 1:
        return "'none' stands alone; leave it out, or leave out the other entries"
    return None


def _entries(path: str) -> list[str]:
    return [entry.strip() for entry in path.split(",")]


def _keep_alive(given: Given) -> float | None:
    minutes = 0.0 if given.text == "off" else _number(given.text)
    if minutes is None or not 0 <= minutes <= _LONGEST:
        raise given.wrong(f"{given.text!r} is not a time; give a number of minutes, a week at most, or off")
    return minutes or None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _migration_timeout(given: Given) -> float:
    seconds = _number(given.text)
    if seconds is not None and seconds > 0 and math.isfinite(seconds):
        return seconds
    raise given.wrong(f"{given.text!r} is not a time; give a number of seconds above 0, or nothing for no limit")


_FORM = "postgresql://user:password@host:5432/database"
_URL = r"[^:]+://(?P<authority>[^/?#]*)(?:/(?P<database>[^?#]*))?(?:\?(?P<query>[^#]*))?"


def _url(given: Given) -> SecretUrl:
    """The URL, which both asyncpg and libpq will understand.

    See https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS.
    """
    if re.match(r"\w+\s*=", given.text):
        raise given.wrong(f"this is a key=value string; write it as a URI: {_FORM}")
    problem = _url_problem(given.text)
    if problem is not None:
        raise given.wrong(f"{_safe(given.text)!r} {problem}")
    return SecretUrl(given.text)


def _url_allow(given: Given) -> str:
    if "://" in given.text:
        raise given.wrong("this is a URL; give the name of its database alone")
    return given.text


def _safe(url: str) -> str:
    """The URL masked, even where space or a scheme that is none would keep `masked` from seeing one."""
    url = re.sub(r"\s", "%20", url)
    if re.match(r"(jdbc:)?[^:/]*://", url):
        return masked(re.sub(r"(://[^:]*:).*(?=@)", rf"\1{HIDDEN}", url))
    return masked(re.sub(r":(?:.*(?=@)|(?!\d{1,5}(?:[/?]|$))[^/?:]+)", f":{HIDDEN}", url))


def _url_problem(url: str) -> str | None:
    """What is wrong with the URL, and how to write it; None if nothing is."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return "holds white space; write it as %20"
    scheme = url.partition("://")[0] if "://" in url else ""
    return _scheme_problem(scheme) or _parts_problem(url)


def _scheme_problem(scheme: str) -> str | None:
    if scheme in ("postgresql", "postgres"):
        return None
    plain = scheme.removeprefix("jdbc:").partition("+")[0]
    if plain in ("postgresql", "postgres"):
        return f"starts with {scheme}://; write {plain}:// alone"
    near = difflib.get_close_matches(scheme.lower(), ["postgresql", "postgres"], n=1)
    meant = f", did you mean {near[0]}://?" if near else "."
    return f"does not start with postgresql:// or postgres://{meant} Write it as {_FORM}"


def _parts_problem(url: str) -> str | None:
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", url):
        return "holds a '%' that starts no character code; write a '%' as %25"
    match = re.fullmatch(_URL, url)
    if match is None:
        return "holds a '#'; write it as %23"
    login, _, hosts = match["authority"].rpartition("@")
    if "@" in login:
        return "holds an '@' in the user or password; write it as %40"
    query = match["query"] or ""
    if any("=" not in part for part in query.split("&") if part):
        return "has a parameter without a value after '?'; write ?name=value&name=value"
    parameters = dict(parse_qsl(query))
    return (
        _twice_problem(login, hosts, match["database"], parameters)
        or _host_problem(hosts, parameters)
        or _database_problem(match["database"], parameters)
    )


def _twice_problem(login: str, hosts: str, database: str | None, parameters: Mapping[str, str]) -> str | None:
    """What is said before the `?` and after it: libpq takes the one, asyncpg the other."""
    user, _, password = login.partition(":")
    ending = re.search(r":\d*$", hosts)
    host, port = (hosts[: ending.start()], ending[0].strip(":")) if ending else (hosts, "")
    before = {"user": user, "password": password, "host": host, "port": port, "dbname": database, "database": database}
    for name, value in before.items():
        if value and parameters.get(name):
            return f"gives the {name} twice, before the '?' and after it, and clients differ in which they take"
    return None


def _host_problem(hosts: str, parameters: Mapping[str, str]) -> str | None:
    """What is wrong with `host:port`. Of several, each connection takes one, and only the first login is looked at."""
    if "," in hosts or "," in parameters.get("host", ""):
        return "names several hosts, and each connection might end at another; name the one that tests may write to"
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::([^:]*))?", hosts)
    if match is None:
        return "has a host that cannot be read; write an IPv6 address in brackets, as [::1]"
    if not match[1] and "host" not in parameters:
        return f"names no host; write it as {_FORM}, or ?host=/folder/of/the/socket"
    return None if _is_port(match[2]) and _is_port(parameters.get("port")) else _BAD_PORT


_BAD_PORT = (
    "has a port that is not a number from 1 to 65535;"
    " if it is part of a password, write '/' as %2F, ':' as %3A, '?' as %3F, '@' as %40"
)


def _is_port(text: str | None) -> bool:
    """Whether it is a port; none and an empty one mean 5432."""
    return not text or bool(re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535)


def _database_problem(database: str | None, parameters: Mapping[str, str]) -> str | None:
    if database or parameters.get("dbname") or parameters.get("database"):
        return None
    return f"names no database; say which one at its end: {_FORM}"


_READERS: dict[str, Callable[[Given], object]] = {
    "url": _url,
    "url-allow": _url_allow,
    "admin-url": _url,
    "server-bin": _server_bin,
    "server-version": _server_version,
    "image": _image,
    "extensions": _extensions,
    "search-path": _search_path,
    "keep-alive": _keep_alive,
    "migration-timeout": _migration_timeout,
}
