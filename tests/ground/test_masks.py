"""Passwords do not survive `masked`, however they are written and whatever is in them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pgdbm.ground.masks import SecretUrl, masked

# Each has a core that occurs nowhere else, so that no part of the rest can pass for it.
NASTY = st.text("@:%/?&#'\"=+$,;!\\[]{}()~", max_size=5)
PASSWORDS = st.builds(lambda before, core, after: before + core + after, NASTY, st.just("Zw9"), NASTY)
AROUND = st.sampled_from(["", "connecting to ", "dsn='", 'url="', "(", "x\n", "host=h "])


@example("Zw9@", "", "")
@example("/Zw9", "", "")
@given(PASSWORDS, AROUND, st.sampled_from(["", " failed", "\nnext line", " with user@example.org"]))
def test_a_password_in_a_uri_is_hidden_even_where_it_is_not_quoted(password: str, before: str, after: str) -> None:
    for scheme in ("postgresql", "postgres", "postgresql+asyncpg", "POSTGRESQL"):
        text = f"{before}{scheme}://user:{password}@host:5432/db?sslmode=require{after}"
        assert "Zw9" not in masked(text)


@given(PASSWORDS, AROUND)
def test_a_percent_quoted_password_is_hidden_and_the_rest_of_the_uri_stays(password: str, before: str) -> None:
    text = f"{before}postgresql://user:{quote(password, safe='')}@host:5432/db?sslmode=require"
    assert masked(text) == f"{before}postgresql://user:****@host:5432/db?sslmode=require"


@given(PASSWORDS.map(lambda p: quote(p, safe="@:/?'\"")))
def test_a_password_in_a_query_string_is_hidden(password: str) -> None:
    shown = masked(f"postgresql://host/db?user=u&password={password}&sslmode=require")
    assert "Zw9" not in shown
    assert shown.endswith("&sslmode=require") or password.startswith(("'", '"'))


@given(PASSWORDS.filter(lambda p: "&" not in p))
def test_a_password_in_an_unquoted_query_string_is_hidden(password: str) -> None:
    assert "Zw9" not in masked(f"postgresql://host/db?password={password}")


@given(PASSWORDS, st.sampled_from(["", " host=h", "\nnext"]))
@example("&Zw9=", "")
def test_a_password_in_a_key_value_string_is_hidden(password: str, after: str) -> None:
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    for text in (f"password='{escaped}'", f"password = '{escaped}'", f"user=u password='{escaped}' port=1"):
        assert "Zw9" not in masked(text + after)
    plain = escaped.replace('"', '\\"')
    assert "Zw9" not in masked(f"host=h password={plain}{after}")


@given(PASSWORDS)
@example("\\':Zw9")
def test_a_password_in_the_print_of_python_and_sql_is_hidden(password: str) -> None:
    assert "Zw9" not in masked(repr({"user": "u", "password": password}))
    assert "Zw9" not in masked(f"DatabaseConfig(host='h', password={password!r}, port=1)")
    assert "Zw9" not in masked("ALTER ROLE u PASSWORD '" + password.replace("'", "''") + "'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:****@h/d"),
        ("postgresql://u:p/w@x@h:5432/d", "postgresql://u:****@h:5432/d"),
        ("postgresql://:p@h/d", "postgresql://:****@h/d"),
        ("postgresql://u@corp:p@h/d", "postgresql://u@corp:****@h/d"),
        ("postgresql://u:p@h/d and postgresql://u:q@i/d", "postgresql://u:****@h/d and postgresql://u:****@i/d"),
        ("postgresql://app:hunter2/db", "postgresql://app:****/db"),
        ("postgresql://app:hunter2", "postgresql://app:****"),
        ("redis://u:p/w@h", "redis://u:****@h"),
        ("https://u:p@h/x", "https://u:****@h/x"),
        ("PGPASSWORD=p psql", "PGPASSWORD=**** psql"),
        ("sslpassword=p sslmode=x", "sslpassword=**** sslmode=x"),
        ("oauth_client_secret=p scram_client_key=q= x=y", "oauth_client_secret=**** scram_client_key=**** x=y"),
        ("postgresql://h/d?sslpassword=p&sslkey=k", "postgresql://h/d?sslpassword=****&sslkey=k"),
        ("postgresql://h/d?x=y&oauth_client_secret=p&z=1", "postgresql://h/d?x=y&oauth_client_secret=****&z=1"),
        ("password=a\\ b host=h", "password=**** host=h"),
        ("password='never closed\nnext", "password=****\nnext"),
        ("{'password': 'p', 'port': 1}", "{'password': ****, 'port': 1}"),
        ('{"password": "p", "port": 1}', '{"password": ****, "port": 1}'),
        ("create role x login password 'a''b' valid until 'x'", "create role x login password **** valid until 'x'"),
    ],
)
def test_what_is_masked_shows_the_rest(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgresql://h:5432/d",
        "postgresql://u@h:5432/d",
        "postgresql://u@[::1]:5432/d",
        "postgresql://h1:5432,h2:5433/d",
        "postgresql:///d?host=/run/postgresql",
        "https://registry:5000/postgres@sha256:0123",
        'password authentication failed for user "u"',
        "mail me@example.org: 10:30",
    ],
)
def test_what_holds_no_password_stays(text: str) -> None:
    assert masked(text) == text


@given(st.text())
def test_masking_never_raises_and_a_second_time_changes_nothing(text: str) -> None:
    assert masked(masked(text)) == masked(text)


def test_a_long_text_is_masked_in_no_time() -> None:
    for piece in ("a", "a-", "://", "password", "password=", "postgresql://a:", "\\", "'", "a:@"):
        masked(piece * 20_000)


def test_a_secret_url_is_a_plain_text_with_a_masked_repr() -> None:
    url = SecretUrl("postgresql://u:p@h/d")
    assert url == "postgresql://u:p@h/d"
    assert str(url) == f"{url}" == "postgresql://u:p@h/d"
    assert repr(url) == "'postgresql://u:****@h/d'"
