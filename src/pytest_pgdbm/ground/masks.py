"""Passwords leave the plugin masked: a URL type that hides its own, and a mask for any text."""

from __future__ import annotations

import re

HIDDEN = "****"

# Compiled where they are first used: a run without a database has nothing to hide.
_WORD = r"(?<!\S)\S+"
_URI_HEAD = r"(?i)\b(?!https?:)[a-z][a-z0-9+.-]{0,30}://[^\s:]*:"
_WEB_URI = r"(?i)(?P<head>\bhttps?://[^\s:/?#@]*:)(?P<secret>[^\s/]*)(?=@)"
# With no '@' after it, what stands where a port is expected may be a password that lost its host.
_NO_HOST = (
    r"(?i)(?P<head>\bpostgres[a-z0-9+.-]{0,30}://[^\s:/?#@\[]*:)"
    r"(?P<secret>(?!\d{1,5}(?:[^\w%]|$))[^\s/?#@,'\"]+)"
)
# What libpq takes for a secret: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_KEY = r"(?:password|client_secret|scram_(?:client|server)_key)"
# As in a key-value string, in Python's and JSON's print of one, and in SQL: PASSWORD 'x'. Whether '\' escapes a quote
# depends on which of them it is; rather too much is hidden than too little.
_QUOTED = (
    rf"(?im)(?P<head>{_KEY}[\"']?(?:\s*[=:]\s*|\s+))"
    r"(?P<quote>[\"'])(?P<secret>(?:(?P=quote){2}|[^\\\n]|\\(?:(?P=quote){2}|.|$))*?)(?:(?P=quote)(?!\w|(?P=quote))|$)"
)
# In a query string it ends at the next '&name=', in a key-value string at a space without '\'.
_PLAIN = (
    rf"(?is)(?P<head>(?P<query>[?&]\w*)?{_KEY}\s*=\s*)(?![\"'\s])"
    r"(?P<secret>(?:\\.|(?(query)(?!&\w+=))\S)+)"
)


def masked(text: str) -> str:
    """`text` with the password of each URI, query string and key-value string in it as `****`."""
    for pattern in (_QUOTED, _PLAIN, _WEB_URI):
        text = re.sub(pattern, rf"\g<head>{HIDDEN}", text)
    return re.sub(_WORD, _without_password, text) if "://" in text else text


def _without_password(match: re.Match[str]) -> str:
    """A word with the password of the URI in it masked.

    The password ends at the last '@': people forget to quote '@' and '/' in it.
    """
    word = match[0]
    head = re.search(_URI_HEAD, word)
    end = word.rfind("@")
    if head is None or end < head.end():
        return re.sub(_NO_HOST, rf"\g<head>{HIDDEN}", word)
    return word[: head.end()] + HIDDEN + word[end:]


class SecretUrl(str):
    """A database URL: a plain `str` for every library, but its `repr` hides the password.

    pytest prints the arguments of a failing test with `repr`, and CI keeps what pytest prints.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """The URL with its password masked."""
        return repr(masked(str(self)))
