"""A running server, as the floors hand it to each other and as users see it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import quote

ServerKind = Literal["url", "embedded", "container"]
Pooling = Literal["none", "session", "transaction"]
"""Whether a pooler is between, and for how long a client has a server process: `transaction` may be for a statement."""


@dataclass(frozen=True)
class Login:
    """A role and its password."""

    user: str
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Identity:
    """What tells a database from all others: the server's system identifier, "" if it is kept secret, and its own oid.

    Beside them its name, and when the server was started.
    """

    system: str
    database: str
    name: str
    started: str


@dataclass(frozen=True)
class Endpoint:
    """A running server and how to reach it.

    `admin` makes databases, extensions and roles; `login` is whom tests and migrations run as (the same over a
    URL). `database` is where the first connection goes. `socket_dir` is set where a Unix socket can be used.
    `url` is what the user gave, for kind `url` only; `admin_url` is a second one, past a pooler, with `admin_place` its
    host and port; `pooling` is what is behind `url`. `why` says in a few words how the server was chosen, and
    `since` what spoke against the programs that would else have been taken, if anything did. `kept` is
    for a server that outlives its run: what stands for its cluster as the next run must find it, empty before the
    first login; None for all other servers. `kept_in` is that server's folder. `workers` of the run share the server.
    `max_connections` are there, of which `reserved_connections` are for others; `limited` is whose limit that is, as
    ALTER names a role or database, "" where it is the server's. `identity` is the database at a URL that was looked at;
    `allowed` says that the user's word opened it.
    """

    kind: ServerKind
    version: str
    host: str
    port: int
    database: str
    login: Login
    admin: Login
    why: str = ""
    since: str = ""
    socket_dir: str | None = None
    url: str | None = field(default=None, repr=False)
    admin_url: str | None = field(default=None, repr=False)
    admin_place: str = ""
    pooling: Pooling = "none"
    sharedir: str | None = None
    max_connections: int = 100
    reserved_connections: int = 3
    limited: str = ""
    kept: str | None = None
    kept_in: str | None = None
    workers: int = 1
    identity: Identity | None = None
    allowed: bool = False

    @property
    def own(self) -> bool:
        """Whether the plugin started this server, which no other run uses now."""
        return self.kind != "url"

    def to_json(self) -> dict[str, Any]:
        """The record as plain data, passwords included: for files of mode 0600 only."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Endpoint:
        """The record that `to_json` wrote."""
        identity = Identity(**data["identity"]) if data.get("identity") else None
        return cls(**{**data, "login": Login(**data["login"]), "admin": Login(**data["admin"]), "identity": identity})

    def url_for(self, database: str) -> str:
        """The libpq URI with which tests reach a database of this server, password included."""
        if self.url is None:
            return self.tcp_url(database, self.login)
        return self.url if database == self.database else _at_database(self.url, database)

    def admin_url_for(self, database: str) -> str:
        """The URI with which the plugin itself reaches a database of a server that somebody else runs."""
        if self.admin_url is None:
            return self.url_for(database)
        return self.admin_url if database == self.database else _at_database(self.admin_url, database)

    def tcp_url(self, database: str, login: Login) -> str:
        """A libpq URI over TCP, password included."""
        who = quote(login.user, safe="")
        if login.password is not None:
            who += ":" + quote(login.password, safe="")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{who}@{host}:{self.port}/{quote(database, safe='')}"


def _at_database(url: str, database: str) -> str:
    """The URI with another database; it can be named in the path or, as every parameter, after the `?`."""
    before, question, query = url.partition("?")
    scheme, _, rest = before.partition("://")
    parameters = [part for part in query.split("&") if part.partition("=")[0] not in ("dbname", "database")]
    at = f"{scheme}://{rest.partition('/')[0]}/{quote(database, safe='')}"
    return at + question + "&".join(parameters) if any(parameters) else at


@dataclass(frozen=True)
class PgdbmServer:
    """The run's Postgres server, for tests and applications that connect by themselves.

    `kind` is `url`, `embedded` or `container`; `version` such as `18.6`; `host` and `port` are for TCP; `database` is
    this worker's; `user` is whom tests run as. `url` is a libpq URI with the password, which its `repr` hides.
    """

    kind: ServerKind
    version: str
    host: str
    port: int
    user: str
    database: str
    url: str
