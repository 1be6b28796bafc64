"""Settings: where each comes from, what is refused and in which words, and never a password in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pgdbm.ground.errors import ConfigError
from pytest_pgdbm.settings import OPTIONS, Option, Setting, Settings, changed, resolve

INI_DIR = Path("/project")
URL = "postgresql://app:s3cret@db.example:5432/shop"


def resolved(
    cli: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, ini: Mapping[str, Any] | None = None
) -> Settings:
    return resolve((cli or {}).get, env or {}, (ini or {}).get, "pytest.ini", INI_DIR)


def refusal(**places: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(**places)
    return str(caught.value)


def test_without_anything_given_each_setting_has_its_default() -> None:
    settings = resolved()
    assert settings == Settings(
        url=Setting(None, "default"),
        url_allow=Setting(None, "default"),
        admin_url=Setting(None, "default"),
        server=Setting("auto", "default"),
        server_bin=Setting(None, "default"),
        server_version=Setting(None, "default"),
        image=Setting("postgres", "default"),
        extensions=Setting((), "default"),
        search_path=Setting(None, "default"),
        role=Setting("user", "default"),
        isolation=Setting("schema", "default"),
        reuse=Setting("on", "default"),
        keep_alive=Setting(None, "default"),
        migration_timeout=Setting(None, "default"),
    )
    assert changed(settings) == []


def test_the_command_line_wins_over_the_environment_and_that_over_the_ini() -> None:
    cli, env, ini = {"server": "url", "url": URL}, {"PGDBM_SERVER": "embedded"}, {"server": "container"}
    assert resolved(cli, env, ini).server == Setting("url", "--pgdbm-server")
    assert resolved(None, env, ini).server == Setting("embedded", "PGDBM_SERVER")
    assert resolved(None, None, ini).server == Setting("container", "pytest.ini")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_value_sets_back_to_the_default_what_the_places_below_say(empty: str) -> None:
    ini = {"url": URL, "image": "postgres:15", "extensions": ["citext"], "migration-timeout": "5"}
    settings = resolved(
        {"url": empty, "extensions": empty}, {"PGDBM_IMAGE": empty, "PGDBM_MIGRATION_TIMEOUT": empty}, ini
    )
    assert settings.url == Setting(None, "--pgdbm-url")
    assert settings.extensions == Setting((), "--pgdbm-extensions")
    assert settings.image == Setting("postgres", "PGDBM_IMAGE")
    assert settings.migration_timeout == Setting(None, "PGDBM_MIGRATION_TIMEOUT")
    assert changed(settings) == []


def test_each_option_has_three_spellings() -> None:
    spellings = {option.stem: (option.flag, option.env, option.dest) for option in OPTIONS}
    assert list(spellings) == [
        *("url", "url-allow", "admin-url", "server", "server-bin", "server-version", "image"),
        *("extensions", "search-path", "role", "isolation", "reuse", "keep-alive", "migration-timeout"),
    ]
    assert spellings["server-bin"] == ("--pgdbm-server-bin", "PGDBM_SERVER_BIN", "pgdbm_server_bin")
    assert all(option.help for option in OPTIONS)


def test_what_was_changed_is_told_with_its_source_and_without_the_password() -> None:
    settings = resolved(
        {"url": URL, "search-path": "$service,public"},
        {"PGDBM_SERVER": "embedded", "PGDBM_ROLE": "user"},
        {"extensions": ["citext", "pgcrypto"], "server-version": "16"},
    )
    assert changed(settings) == [
        "url=postgresql://app:****@db.example:5432/shop (from --pgdbm-url; not used, since server=embedded)",
        "server=embedded (from PGDBM_SERVER)",
        "server-version=16 (from pytest.ini)",
        "extensions=citext, pgcrypto (from pytest.ini)",
        "search-path=$service, public (from --pgdbm-search-path)",
    ]


def test_an_admin_url_is_read_as_the_url_is() -> None:
    assert resolved(env={"PGDBM_ADMIN_URL": URL}, ini={"url": URL}).admin_url == Setting(URL, "PGDBM_ADMIN_URL")
    assert refusal(cli={"admin-url": "db.example"}, ini={"url": URL}).startswith("--pgdbm-admin-url: 'db.example' does")
    shown = changed(resolved({"admin-url": URL, "server": "embedded"}, ini={"url": URL}))
    assert shown[1] == (
        "admin-url=postgresql://app:****@db.example:5432/shop (from --pgdbm-admin-url; not used, since server=embedded)"
    )


def test_an_admin_url_alone_is_refused_but_a_url_that_was_taken_back_is_not() -> None:
    assert refusal(ini={"admin-url": URL}) == (
        "admin-url (from pytest.ini) is the way past the pooler at the url; give --pgdbm-url, PGDBM_URL or the ini"
        " setting pgdbm_url as well, or that alone if there is no pooler"
    )
    assert resolved({"url": ""}, ini={"url": URL, "admin-url": URL}).url.value is None


def test_the_url_prints_without_its_password() -> None:
    assert "s3cret" not in repr(resolved({"url": URL}))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            {"cli": {"server": "embeded"}},
            "--pgdbm-server: 'embeded' is not known; did you mean 'embedded'? Valid are auto, url, embedded, container",
        ),
        (
            {"env": {"PGDBM_SERVER": "Docker"}},
            "PGDBM_SERVER: 'Docker' is not known. Valid are auto, url, embedded, container",
        ),
        (
            {"ini": {"role": "SUPERUSER"}},
            "pgdbm_role in pytest.ini: 'SUPERUSER' is not known; did you mean 'superuser'? Valid are user, superuser",
        ),
        (
            {"cli": {"server": "url"}},
            "server=url (from --pgdbm-server) needs a URL; give --pgdbm-url, PGDBM_URL or the ini setting pgdbm_url",
        ),
        (
            {"env": {"PGDBM_URL_ALLOW": "postgresql://u:s3cret@h/d"}},
            "PGDBM_URL_ALLOW: this is a URL; give the name of its database alone",
        ),
        (
            {"env": {"PGDBM_SERVER_VERSION": "v16"}},
            "PGDBM_SERVER_VERSION: 'v16' is not a PostgreSQL version; write it as 16 or 16.4",
        ),
        (
            {"cli": {"image": "postgres 17"}},
            "--pgdbm-image: 'postgres 17' is not the name of an image; write it as postgres:17",
        ),
        (
            {"ini": {"extensions": ["citext", "uuid'ossp"]}},
            'pgdbm_extensions in pytest.ini: "uuid\'ossp" is not the name of an extension; write names like pgcrypto'
            " or uuid-ossp, separated by commas or spaces",
        ),
        (
            {"cli": {"search-path": "pg_catalog public"}},
            "--pgdbm-search-path: 'pg_catalog public' cannot stand in the search path; give plain schema names and"
            " $service, separated by commas, as 'pg_catalog, public', or the one word none",
        ),
        (
            {"cli": {"search-path": "public, none"}},
            "--pgdbm-search-path: 'none' stands alone; leave it out, or leave out the other entries",
        ),
        (
            {"cli": {"migration-timeout": "5m"}},
            "--pgdbm-migration-timeout: '5m' is not a time; give a number of seconds above 0, or nothing for no limit",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_the_valid_ones(
    places: dict[str, Mapping[str, Any]], message: str
) -> None:
    assert refusal(**places) == message


@pytest.mark.parametrize("version", ["16", "14", "16.4", "18.0.1"])
def test_versions_are_taken(version: str) -> None:
    assert resolved({"server-version": version}).server_version.value == version


@pytest.mark.parametrize("version", ["0", "16.", ".4", "16.4.1.1", "16beta1", ">=16", "latest", "016"])
def test_what_is_no_version_is_refused(version: str) -> None:
    assert repr(version) in refusal(cli={"server-version": version})


@pytest.mark.parametrize("version", ["9", "9.6.24", "13.22"])
def test_a_version_that_is_too_old_is_refused(version: str) -> None:
    assert refusal(ini={"server-version": version}) == (
        f"pgdbm_server_version in pytest.ini: PostgreSQL {version} is too old; pytest-pgdbm needs 14 or later"
    )


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "1e999", "none", "5,5"])
def test_what_is_no_time_is_refused(timeout: str) -> None:
    assert repr(timeout) in refusal(cli={"migration-timeout": timeout})


def test_a_time_is_taken_in_seconds() -> None:
    assert resolved({"migration-timeout": "2.5"}).migration_timeout.value == 2.5


@pytest.mark.parametrize(("text", "minutes"), [("30", 30), ("0.5", 0.5), ("0", None), ("off", None), ("10080", 10080)])
def test_a_server_is_kept_for_so_many_minutes(text: str, minutes: float | None) -> None:
    assert resolved({"keep-alive": text}).keep_alive.value == minutes


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "10081", "on", "30m", "OFF"])
def test_what_is_no_number_of_minutes_is_refused(text: str) -> None:
    message = f"--pgdbm-keep-alive: {text!r} is not a time; give a number of minutes, a week at most, or off"
    assert refusal(cli={"keep-alive": text}) == message


def test_a_setting_that_the_chosen_server_does_not_have_is_told() -> None:
    assert changed(resolved({"keep-alive": "30", "server": "container"})) == [
        "server=container (from --pgdbm-server)",
        "keep-alive=30 (from --pgdbm-keep-alive; not used, since server=container)",
    ]
    assert changed(resolved({"keep-alive": "2.5"})) == ["keep-alive=2.5 (from --pgdbm-keep-alive)"]


@pytest.mark.parametrize("image", ["postgres", "postgres:17-alpine", "ghcr.io/a/b_c:1.0", "localhost:5000/x@sha256:0a"])
def test_images_are_taken(image: str) -> None:
    assert resolved({"image": image}).image.value == image


@pytest.mark.parametrize("image", ["-v/:/x", "a b", "ü", "x;y"])
def test_what_is_no_image_is_refused(image: str) -> None:
    assert repr(image) in refusal(cli={"image": image})


@pytest.mark.parametrize(
    "raw", ["citext,pgcrypto, uuid-ossp", "citext pgcrypto\nuuid-ossp citext", ["citext pgcrypto", "", "uuid-ossp"]]
)
def test_extensions_are_separated_by_commas_spaces_or_lines(raw: object) -> None:
    assert resolved(ini={"extensions": raw}).extensions.value == ("citext", "pgcrypto", "uuid-ossp")


@pytest.mark.parametrize("name", ["-x", "x-", "a--b", "../x", "a.b", '"x"'])
def test_what_is_no_extension_is_refused(name: str) -> None:
    assert repr(name) in refusal(cli={"extensions": name})


@pytest.mark.parametrize(
    ("raw", "value"),
    [("none", "none"), ("public", "public"), ("pg_catalog,$service ,public", "pg_catalog, $service, public")],
)
def test_search_paths_are_taken(raw: str, value: str) -> None:
    assert resolved({"search-path": raw}).search_path.value == value


@pytest.mark.parametrize("entry", ["", "$user", '"a"', "a.b", "1a", "x" * 64, "$SERVICE", "a;b"])
def test_what_cannot_stand_in_a_search_path_is_refused(entry: str) -> None:
    assert refusal(cli={"search-path": f"public,{entry}"}).startswith(f"--pgdbm-search-path: {entry!r} cannot stand")


def test_the_programs_of_the_ini_are_relative_to_it_and_others_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/dev")
    assert resolved(ini={"server-bin": "pg/bin"}).server_bin.value == "/project/pg/bin"
    assert resolved(env={"PGDBM_SERVER_BIN": "pg/bin"}).server_bin.value == str(tmp_path / "pg" / "bin")
    assert resolved({"server-bin": "pg/bin"}).server_bin.value == str(tmp_path / "pg" / "bin")
    assert resolved(ini={"server-bin": "~/pg"}).server_bin.value == "/home/dev/pg"
    assert resolved(ini={"server-bin": "/usr/pg"}).server_bin.value == "/usr/pg"


def test_a_home_that_is_unknown_is_told() -> None:
    message = refusal(cli={"server-bin": "~no-such-user-here/pg"})
    assert message.startswith("--pgdbm-server-bin: '~no-such-user-here/pg': ")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h:5432/d",
        "postgres://h/d",
        "postgresql://u@h/d?sslmode=require&application_name=x%20y",
        "postgresql://u:p%40%2F%3F%25@h/d",
        "postgresql://[::1]:5433/d",
        "postgresql://u@/d?host=/run/postgresql",
        "postgresql://u@:5433/d?host=/run/postgresql",
        "postgresql:///d?host=/run/postgresql&port=5433",
        "postgresql://%2Frun%2Fpostgresql/d",
        "postgresql://h?dbname=d",
        "postgresql://h:/d",
        "postgresql://u:@h/d",
    ],
)
def test_urls_are_taken_as_they_are(url: str) -> None:
    assert resolved({"url": f" {url}\n"}).url.value == url


FORM = "postgresql://user:password@host:5432/database"
SEVERAL = "names several hosts, and each connection might end at another; name the one that tests may write to"
TWICE = "gives the {} twice, before the '?' and after it, and clients differ in which they take"
QUOTE_IT = (
    "has a port that is not a number from 1 to 65535; if it is part of a password, write '/' as %2F, ':' as %3A,"
    " '?' as %3F, '@' as %40"
)


@pytest.mark.parametrize(
    ("url", "shown", "problem"),
    [
        (
            "postgresql+asyncpg://u:s3cret@h/d",
            "postgresql+asyncpg://u:****@h/d",
            "starts with postgresql+asyncpg://; write postgresql:// alone",
        ),
        (
            "jdbc:postgresql://h/d",
            "jdbc:postgresql://h/d",
            "starts with jdbc:postgresql://; write postgresql:// alone",
        ),
        (
            "postgress://h/d",
            "postgress://h/d",
            f"does not start with postgresql:// or postgres://, did you mean postgres://? Write it as {FORM}",
        ),
        (
            "mysql://u:s3cret@h/d",
            "mysql://u:****@h/d",
            f"does not start with postgresql:// or postgres://. Write it as {FORM}",
        ),
        (
            "localhost:5432/d",
            "localhost:5432/d",
            f"does not start with postgresql:// or postgres://. Write it as {FORM}",
        ),
        (
            "postgresql:/u:s3cret@h/d",
            "postgresql:****@h/d",
            f"does not start with postgresql:// or postgres://. Write it as {FORM}",
        ),
        ("u:s3cret@h/d", "u:****@h/d", f"does not start with postgresql:// or postgres://. Write it as {FORM}"),
        ("u:s3cret/d", "u:****/d", f"does not start with postgresql:// or postgres://. Write it as {FORM}"),
        ("postgresql://u:s3 cret@h/d", "postgresql://u:****@h/d", "holds white space; write it as %20"),
        (
            "postgresql://u:s3cret%@h/d",
            "postgresql://u:****@h/d",
            "holds a '%' that starts no character code; write a '%' as %25",
        ),
        (
            "postgresql://u:s3cret%00@h/d",
            "postgresql://u:****@h/d",
            "holds a '%' that starts no character code; write a '%' as %25",
        ),
        ("postgresql://u:s3#cret@h/d", "postgresql://u:****@h/d", "holds a '#'; write it as %23"),
        (
            "postgresql://u:s3@cret@h/d",
            "postgresql://u:****@h/d",
            "holds an '@' in the user or password; write it as %40",
        ),
        ("postgresql://u:s3/cret@h/d", "postgresql://u:****@h/d", QUOTE_IT),
        ("postgresql://u:s3cret/d", "postgresql://u:****/d", QUOTE_IT),
        ("postgresql://h:0/d", "postgresql://h:0/d", QUOTE_IT),
        ("postgresql://h:65536/d", "postgresql://h:65536/d", QUOTE_IT),
        ("postgresql://h/d?port=x", "postgresql://h/d?port=x", QUOTE_IT),
        (
            "postgresql://::1/d",
            "postgresql://:****/d",
            "has a host that cannot be read; write an IPv6 address in brackets, as [::1]",
        ),
        ("postgresql:///d", "postgresql:///d", f"names no host; write it as {FORM}, or ?host=/folder/of/the/socket"),
        ("postgresql://u@h,/d", "postgresql://u@h,/d", SEVERAL),
        ("postgresql://u@a:1,b:2/d", "postgresql://u@a:1,b:2/d", SEVERAL),
        ("postgresql:///d?host=a,b", "postgresql:///d?host=a,b", SEVERAL),
        (
            "postgresql://u:s3cret@h",
            "postgresql://u:****@h",
            f"names no database; say which one at its end: {FORM}",
        ),
        ("postgresql://h/", "postgresql://h/", f"names no database; say which one at its end: {FORM}"),
        (
            "postgresql://h/d?sslmode",
            "postgresql://h/d?sslmode",
            "has a parameter without a value after '?'; write ?name=value&name=value",
        ),
        ("postgresql://h/app_test?dbname=shop", "postgresql://h/app_test?dbname=shop", TWICE.format("dbname")),
        ("postgresql://h/app_test?database=shop", "postgresql://h/app_test?database=shop", TWICE.format("database")),
        ("postgresql://h/d?host=prod", "postgresql://h/d?host=prod", TWICE.format("host")),
        ("postgresql://h:5432/d?port=1", "postgresql://h:5432/d?port=1", TWICE.format("port")),
        ("postgresql://u@h/d?user=boss", "postgresql://u@h/d?user=boss", TWICE.format("user")),
        ("postgresql://u:a@h/d?password=b", "postgresql://u:****@h/d?password=****", TWICE.format("password")),
    ],
)
def test_a_url_that_is_wrong_is_told_without_its_password(url: str, shown: str, problem: str) -> None:
    message = refusal(env={"PGDBM_URL": url})
    assert message == f"PGDBM_URL: {shown!r} {problem}"
    assert "s3cret" not in message


@pytest.mark.parametrize("option", [option for option in OPTIONS if "url" not in option.stem], ids=lambda o: o.stem)
def test_a_url_in_the_place_of_another_setting_is_told_without_any_of_it(option: Option) -> None:
    assert refusal(env={option.env: "postgresql://u:s3cret@h/d"}) == (
        f"{option.env}: this is a URL; give it as --pgdbm-url, PGDBM_URL or pgdbm_url in the ini"
    )


def test_a_key_value_string_is_told_without_any_of_it() -> None:
    assert refusal(cli={"url": "host=h password=s3 cret dbname=d"}) == (
        f"--pgdbm-url: this is a key=value string; write it as a URI: {FORM}"
    )


PASSWORDS = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"Zw9{text}Zw9")


def outcome(**places: Mapping[str, Any]) -> Settings | str:
    try:
        return resolved(**places)
    except ConfigError as error:
        return str(error)


@given(
    PASSWORDS,
    st.sampled_from(
        [
            "postgresql://",
            "postgres://",
            "mysql://",
            "http://",
            "postgresql+asyncpg://",
            "postgresql:/",
            "//",
            "pg:",
            "",
        ]
    ),
    st.sampled_from(["", "?options=a://b"]),
)
@example("Zw9/", "", "")
@example("Zw9://", "", "")
def test_no_password_is_in_any_message_about_a_url(password: str, scheme: str, query: str) -> None:
    found = outcome(cli={"url": f"{scheme}user:{password}@host:5432/db{query}"})
    told = found if isinstance(found, str) else repr(found) + "".join(changed(found))
    assert "Zw9" not in told


@given(st.sampled_from([option.stem for option in OPTIONS]), st.text(max_size=30), st.sampled_from(["cli", "ini"]))
def test_any_text_is_taken_or_refused_with_the_name_of_the_setting(stem: str, text: str, place: str) -> None:
    found = outcome(**{place: {stem: text}})
    if isinstance(found, str):
        assert stem in found.replace("_", "-")
    else:
        source = {"cli": f"--pgdbm-{stem}", "ini": "pytest.ini"}[place]
        assert getattr(found, stem.replace("-", "_")).source == source
