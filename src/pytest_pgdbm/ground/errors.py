"""Every error and warning that the plugin raises by name.

A message says what was tried, why it failed, and what mends it. Passwords are masked before they get here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PgdbmError(Exception):
    """The base of all errors of pytest-pgdbm."""


def plainly(error: PgdbmError) -> PgdbmError:
    """The error without the plugin's own frames: its message says all, and the user's line is what matters."""
    return error.with_traceback(None)


class ConfigError(PgdbmError):
    """A setting, declaration or argument is wrong; pytest shows it as a usage error."""


class UnknownService(PgdbmError):
    """A test asked for a service that is declared nowhere.

    `name` is what was asked for, `known` the services that the test could have.
    """

    def __init__(
        self, name: str, known: Iterable[str], looked_in: Sequence[str] = (), advice: str | None = None
    ) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        near = difflib.get_close_matches(str(name), self.known, n=1)
        lines = [f"unknown service {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")]
        lines.append("  known services: " + (", ".join(self.known) or "none"))
        lines += [f"  looked in: {place}" for place in looked_in]
        lines.append(
            f"  {advice}"
            if advice
            else f"  to declare it: make the folder migrations/{name}/ with its .sql files, add the line"
            f" '{name} = path/to/its/migrations' to the setting pgdbm_services, or give migrations= to pgdbm_db()"
        )
        super().__init__("\n".join(lines))


class NoServer(PgdbmError):
    """No Postgres server could be had. `attempts` holds what was tried and why each failed."""

    def __init__(self, attempts: Sequence[Attempt], remedy: str) -> None:
        self.attempts = tuple(attempts)
        self.remedy = remedy
        lines = ["pytest-pgdbm could not get a Postgres server"]
        lines += [f"  {a.kind}: {_indented(a.why)}" for a in attempts]
        lines.append(f"  to mend it: {remedy}")
        super().__init__("\n".join(lines))


class Attempt:
    """One way to get a server that was tried, and why it failed."""

    def __init__(self, kind: str, why: str) -> None:
        self.kind = kind
        self.why = why


class ServerFailed(PgdbmError):
    """One way to get a server failed. `remedy` is the command or setting that mends it."""

    def __init__(self, why: str, remedy: str) -> None:
        self.why = why
        self.remedy = remedy
        super().__init__(f"{why}\n  to mend it: {remedy}")


class ServerGone(NoServer):
    """The server of this run did not come when it was asked for first; that error tells the story."""

    def __init__(self, said: str) -> None:
        self.attempts = ()
        self.remedy = ""
        PgdbmError.__init__(self, said)


class SharedFailure(PgdbmError):
    """Another process of the run tried before to get a server and failed; the text is its error's."""


class BuildError(PgdbmError):
    """A set of schemas could not be built. Nothing of it is left on the server."""


class MigrationsError(BuildError):
    """A service's migrations folder or files cannot be used."""


class SeedError(BuildError):
    """A seed failed."""


class LeaseEnded(PgdbmError):
    """A manager was used after its test had ended."""


class LeaseLost(PgdbmError):
    """What a test had leased is not surely its own any more, since the plugin's connection to the server ended."""


class NoConnection(PgdbmError):
    """The server had no connection left, or no turn came, for as long as is waited for one."""


class PgdbmWarning(UserWarning):
    """The base of all warnings of pytest-pgdbm."""


class PgdbmLeakWarning(PgdbmWarning):
    """A test left a connection, transaction or lock behind."""


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
