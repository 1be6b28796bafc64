"""Passwords as the server keeps them: SCRAM verifiers, which let nobody in who has only them.

https://www.postgresql.org/docs/current/catalog-pg-authid.html
"""

from __future__ import annotations

import os
from pathlib import Path

PLACEHOLDER = f"SCRAM-SHA-256$1:{'A' * 22}==${'A' * 43}=:{'A' * 43}="
"""What the superuser of a cached cluster has for a verifier: no password that anybody knows fits it."""

_ROLES = "global/1260"
"""The file of `pg_authid` in a cluster that is as `initdb` made it."""


def verifier(password: str) -> str:
    """The verifier of a plain ASCII password, with one iteration: such a password is random, and lives for a run.

    It is as long as every other.
    """
    # The keeper, which has no use for them, starts sooner without these.
    import hashlib
    import hmac

    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256$1:{_base64(salt)}${_base64(stored)}:{_base64(server)}"


def replace_placeholder(data: Path, new: str) -> bool:
    """Gives the superuser the verifier `new` instead of the placeholder, in a cluster that does not run.

    The two are of one length, so nothing else in the file changes; the pages have no checksums. False, with nothing
    changed, if the placeholder does not stand there exactly once.
    """
    file = data / _ROLES
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False
    if content.count(PLACEHOLDER.encode()) != 1 or len(new) != len(PLACEHOLDER):
        return False
    with file.open("r+b") as opened:
        opened.seek(content.index(PLACEHOLDER.encode()))
        opened.write(new.encode())
    return True


def _base64(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()
