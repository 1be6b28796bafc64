"""Passwords leave the plugin masked: a URL type that hides its own, and a mask for any text."""

from __future__ import annotations

import re

HIDDEN = "****"

# The password of a database URI ends at the last '@': people forget to quote '@' and '/' in it.
_URI = re.compile(r"(?P<head>\b(?!https?:)[a-z][a-z0-9+.-]{0,30}://[^\s:]*:)(?P<secret>\S*)(?=@)", re.IGNORECASE)
_WEB_URI = re.compile(r"(?P<head>\bhttps?://[^\s:/?#@]*:)(?P<secret>[^\s/]*)(?=@)", re.IGNORECASE)
# With no '@' after it, what stands where a port is expected may be a password that lost its host.
_NO_HOST = re.compile(
    r"(?P<head>\bpostgres[a-z0-9+.-]{0,30}://[^\s:/?#@\[]*:)"
    r"(?P<secret>(?!\d{1,5}(?:[^\w%]|$))[^\s/?#@,'\"]+)(?!\S*@)",
    re.IGNORECASE,
)
# As in a key-value string, in Python's and JSON's print of one, and in SQL: PASSWORD 'x'.
_QUOTED = re.compile(
    r"(?P<head>password[\"']?(?:\s*[=:]\s*|\s+))"
    r"(?P<quote>[\"'])(?P<secret>(?:(?P=quote){2}|[^\\\n]|\\(?:.|$))*?)(?:(?P=quote)(?!\w|(?P=quote))|$)",
    re.IGNORECASE | re.MULTILINE,
)
# In a query string it ends at the next '&name=', in a key-value string at a space without '\'.
_PLAIN = re.compile(
    r"(?P<head>password\s*=\s*)(?![\"'\s])(?P<secret>(?:\\.|(?!&\w+=)\S)+)",
    re.IGNORECASE | re.DOTALL,
)


def masked(text: str) -> str:
    """`text` with the password of each URI, query string and key-value string in it as `****`."""
    for pattern in (_QUOTED, _PLAIN, _URI, _WEB_URI, _NO_HOST):
        text = pattern.sub(rf"\g<head>{HIDDEN}", text)
    return text


class SecretUrl(str):
    """A database URL: a plain `str` for every library, but its `repr` hides the password.

    pytest prints the arguments of a failing test with `repr`, and CI keeps what pytest prints.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """The URL with its password masked."""
        return repr(masked(str(self)))
