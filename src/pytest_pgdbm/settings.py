"""The settings of a run: three spellings each, one precedence, checked before anything starts.

`--pgdbm-server` on the command line wins over `PGDBM_SERVER` in the environment, that over
`pgdbm_server` in the ini file, that over the default. An empty value counts as given: it sets back
to the default what the places below say.

Every run of pytest loads this, be it without a database; so it makes no class that takes long to make, as a dataclass
or a named tuple does, and what reads values is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from pytest_pgdbm.ground.errors import ConfigError

if TYPE_CHECKING:
    from pytest_pgdbm.ground.masks import SecretUrl

T = TypeVar("T")
ServerChoice = Literal["auto", "url", "embedded", "container"]
Role = Literal["user", "superuser"]
Isolation = Literal["schema", "database"]
Reuse = Literal["on", "off"]
Lookup: TypeAlias = "Callable[[str], object | None]"

DEFAULT = "default"
OLDEST_SERVER = 14
"""The oldest major version that is still maintained: https://www.postgresql.org/support/versioning/"""


class Setting(Generic[T]):
    """A value and where it came from: `--pgdbm-url`, `PGDBM_URL`, `pytest.ini`, `default`."""

    __slots__ = ("source", "value")

    def __init__(self, value: T, source: str) -> None:
        self.value = value
        self.source = source

    def __eq__(self, other: object) -> bool:
        """Whether both are the same."""
        return isinstance(other, Setting) and (self.value, self.source) == (other.value, other.source)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Both, as they are shown when a test fails."""
        return f"Setting({self.value!r}, {self.source!r})"


class Settings(SimpleNamespace):
    """All settings of a run.

    `server_bin` is an absolute path, `server_version` the wanted version as `16` or `16.4`.
    `search_path` is None where pgdbm's own default stays, else its entries as `pg_catalog, public`,
    or `none`. `keep_alive` is in minutes; None means not at all. `migration_timeout` is in seconds;
    None means without end.
    """

    url: Setting[SecretUrl | None]
    url_allow: Setting[str | None]
    admin_url: Setting[SecretUrl | None]
    server: Setting[ServerChoice]
    server_bin: Setting[str | None]
    server_version: Setting[str | None]
    image: Setting[str]
    extensions: Setting[tuple[str, ...]]
    search_path: Setting[str | None]
    role: Setting[Role]
    isolation: Setting[Isolation]
    reuse: Setting[Reuse]
    keep_alive: Setting[float | None]
    migration_timeout: Setting[float | None]


class Option:
    """One setting as pytest registers it. `ini_type` is the type that `addini` takes."""

    def __init__(
        self,
        stem: str,
        help: str,
        *,
        metavar: str | None = None,
        choices: tuple[str, ...] = (),
        default: object = None,
        ini_type: Literal["string", "linelist"] = "string",
    ) -> None:
        self.stem = stem
        self.help = help
        self.metavar = metavar
        self.choices = choices
        self.default = default
        self.ini_type = ini_type

    @property
    def flag(self) -> str:
        """The spelling on the command line: `--pgdbm-server-bin`."""
        return f"--pgdbm-{self.stem}"

    @property
    def env(self) -> str:
        """The spelling in the environment: `PGDBM_SERVER_BIN`."""
        return self.dest.upper()

    @property
    def dest(self) -> str:
        """The spelling in the ini file, and pytest's `dest`: `pgdbm_server_bin`."""
        return f"pgdbm_{self.field}"

    @property
    def field(self) -> str:
        """The name in `Settings`."""
        return self.stem.replace("-", "_")


OPTIONS: tuple[Option, ...] = (
    Option(
        "url",
        "run against this existing database: postgresql://user:password@host:5432/database",
        metavar="URL",
    ),
    Option(
        "url-allow",
        "run against the database of this name at the URL, though it does not look like one for tests",
        metavar="DATABASE",
    ),
    Option(
        "admin-url",
        "the same database past the pooler that the url goes through, for what needs a session of the server",
        metavar="URL",
    ),
    Option(
        "server",
        "where Postgres comes from; auto (the default) takes the url if one is given, else"
        " installed binaries, else a container",
        choices=("auto", "url", "embedded", "container"),
        default="auto",
    ),
    Option(
        "server-bin",
        "the folder of the server programs (initdb, postgres) for the embedded server",
        metavar="FOLDER",
    ),
    Option(
        "server-version",
        "the PostgreSQL version that the server must have, as 16 or 16.4",
        metavar="VERSION",
    ),
    Option(
        "image",
        "the image for the container server (default: postgres)",
        metavar="IMAGE",
        default="postgres",
    ),
    Option(
        "extensions",
        "extensions to create before the first migration, separated by commas or spaces",
        metavar="NAMES",
        default=(),
        ini_type="linelist",
    ),
    Option(
        "search-path",
        "what the application gives pgdbm as shared_pool_search_path, as 'pg_catalog, public';"
        " $service is the test's schema, 'none' leaves connections without",
        metavar="PATH",
    ),
    Option(
        "role",
        "who tests and migrations run as on a server of the run's own (default: user)",
        choices=("user", "superuser"),
        default="user",
    ),
    Option(
        "isolation",
        "where a test's services live: as schemas of a shared database (schema, the default), or under their real"
        " names in a database of the test's own (database)",
        choices=("schema", "database"),
        default="schema",
    ),
    Option(
        "reuse",
        "whether a migrated schema is emptied and leased again (on, the default), or dropped after each test (off)",
        choices=("on", "off"),
        default="on",
    ),
    Option(
        "keep-alive",
        "keep the embedded server for the next run, for so many minutes after the last one (default: off)",
        metavar="MINUTES",
    ),
    Option(
        "migration-timeout",
        "how long one migration may take (default: without end)",
        metavar="SECONDS",
    ),
)


def resolve(cli: Lookup, environ: Mapping[str, str], ini: Lookup, ini_name: str, ini_dir: Path) -> Settings:
    """The settings of a run, each from the first place that gives it.

    `cli` and `ini` return what the command line and the ini file give for a stem like `server-bin`,
    or None where they give nothing. `ini_name` names the ini file in messages, and its relative
    paths start at `ini_dir`; others start at the working directory. Raises ConfigError for a
    value that is not valid.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        given = _given(option, cli, environ, ini, ini_name, ini_dir)
        values[option.field] = Setting(option.default, DEFAULT) if given is None else _read(option, *given)
    settings = Settings(**values)
    _check_together(settings)
    return settings


def changed(settings: Settings) -> list[str]:
    """A line for each setting that is not as by default: `server=embedded (from PGDBM_SERVER)`."""
    defaults = {option.field: option for option in OPTIONS}
    lines = []
    for field, setting in vars(settings).items():
        if setting.source != DEFAULT and setting.value != defaults[field].default:
            note = _unused_note(field, settings)
            stem = defaults[field].stem
            lines.append(f"{stem}={_shown(setting.value)} (from {setting.source}{note})")
    return lines


def _shown(value: object) -> str:
    from pytest_pgdbm.ground.masks import masked

    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return masked(str(value))


_USED_BY = {"url": "url", "url_allow": "url", "admin_url": "url", "keep_alive": "embedded"}


def _unused_note(field: str, settings: Settings) -> str:
    used = _USED_BY.get(field)
    if used is None or settings.server.value in ("auto", used):
        return ""
    return f"; not used, since server={settings.server.value}"


def _check_together(settings: Settings) -> None:
    if settings.server.value == "url" and settings.url.value is None:
        raise ConfigError(
            f"server=url (from {settings.server.source}) needs a URL; give --pgdbm-url,"
            " PGDBM_URL or the ini setting pgdbm_url"
        )
    if settings.admin_url.value is not None and settings.url == Setting(None, DEFAULT):
        raise ConfigError(
            f"admin-url (from {settings.admin_url.source}) is the way past the pooler at the url; give --pgdbm-url,"
            " PGDBM_URL or the ini setting pgdbm_url as well, or that alone if there is no pooler"
        )


def _given(
    option: Option,
    cli: Lookup,
    environ: Mapping[str, str],
    ini: Lookup,
    ini_name: str,
    ini_dir: Path,
) -> tuple[object, str, str, Path | None] | None:
    """The value of the first place that has one: with that place in short and in full."""
    if (raw := cli(option.stem)) is not None:
        return raw, option.flag, option.flag, None
    if (raw := environ.get(option.env)) is not None:
        return raw, option.env, option.env, None
    if (raw := ini(option.stem)) is not None:
        return raw, ini_name, f"{option.dest} in {ini_name}", ini_dir
    return None


def _read(option: Option, raw: object, source: str, where: str, base: Path | None) -> Setting[Any]:
    from pytest_pgdbm.reading import Given, read

    return Setting(read(Given(option, raw, source, where, base)), source)
