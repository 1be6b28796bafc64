"""Records: processes told apart, endpoints that travel, URLs that every client reads alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.ground.endpoint import Endpoint, Identity, Login
from pytest_pgdbm.ground.records import Process, start_time

linux = pytest.mark.skipif(sys.platform != "linux", reason="start times are read from Linux's /proc")
ENDPOINT = Endpoint(
    kind="embedded",
    version="18.6",
    host="127.0.0.1",
    port=5432,
    database="postgres",
    login=Login("app", "s3cret"),
    admin=Login("admin", "t0p"),
)


def test_this_process_is_alive() -> None:
    assert Process.this().pid == os.getpid()
    assert Process.this().alive()


def test_a_process_that_ended_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.alive()
    child.communicate()
    assert not process.alive()
    assert not Process(child.pid, None).alive()


@linux
def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = Process.of(child.pid)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.stdout.read()  # until it is gone or about to go
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    assert not process.alive()
    child.wait()
    child.stdout.close()


@linux
def test_a_later_process_with_the_same_number_is_another_one() -> None:
    this = Process.this()
    assert this.started is not None
    assert not this._replace(started=this.started - 1).alive()


@linux
def test_a_process_whose_program_has_an_odd_name_is_read(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/) Z \xff"
    shutil.copy(os.fsencode(shutil.which("sleep") or "sleep"), program)
    with subprocess.Popen([program, "60"]) as child:
        try:
            assert Process.of(child.pid).alive()
        finally:
            child.kill()


def test_no_such_process_has_no_start_time() -> None:
    assert start_time(2**30) is None


def test_an_endpoint_travels_as_json_with_its_passwords() -> None:
    assert Endpoint.from_json(ENDPOINT.to_json()) == ENDPOINT
    seen = replace(ENDPOINT, identity=Identity("7", "5", "postgres", "1.5"), allowed=True)
    assert Endpoint.from_json(seen.to_json()) == seen


def test_an_endpoint_that_an_earlier_version_has_kept_is_read() -> None:
    data = ENDPOINT.to_json()
    del data["identity"], data["allowed"]
    assert Endpoint.from_json(data) == ENDPOINT


def test_an_endpoint_and_a_login_print_without_passwords() -> None:
    endpoint = replace(ENDPOINT, url="postgresql://u:s3cret@h/d")
    assert "s3cret" not in repr(endpoint)
    assert "t0p" not in repr(endpoint)


def test_only_a_server_at_a_url_is_not_our_own() -> None:
    assert ENDPOINT.own
    assert replace(ENDPOINT, kind="container").own
    assert not replace(ENDPOINT, kind="url").own


@given(st.text(min_size=1), st.none() | st.text(min_size=1), st.text(min_size=1))
def test_a_tcp_url_reads_back_whatever_is_in_user_password_and_database(
    user: str, password: str | None, database: str
) -> None:
    texts = [user, password or "", database]
    if any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        return
    parts = urlsplit(ENDPOINT.tcp_url(database, Login(user, password)))
    assert (parts.scheme, parts.hostname, parts.port) == ("postgresql", "127.0.0.1", 5432)
    assert unquote(parts.username or "") == user
    assert (None if parts.password is None else unquote(parts.password)) == password
    assert unquote(parts.path[1:]) == database


def test_a_tcp_url_puts_an_ipv6_address_in_brackets() -> None:
    url = replace(ENDPOINT, host="::1").tcp_url("db", Login("u"))
    assert url == "postgresql://u@[::1]:5432/db"


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:p@h:5432/a%20b"),
        ("postgres://u@h1:1,h2:2/db?sslmode=require", "postgres://u@h1:1,h2:2/a%20b?sslmode=require"),
        ("postgresql://h?dbname=db", "postgresql://h/a%20b"),
        ("postgresql:///db?host=/tmp&database=db&port=1", "postgresql:///a%20b?host=/tmp&port=1"),
        (
            "postgresql://u:p%3F%2F@[::1]/db?application_name=x/y",
            "postgresql://u:p%3F%2F@[::1]/a%20b?application_name=x/y",
        ),
    ],
)
def test_another_database_of_the_server_at_a_url_has_the_same_url_but_for_its_name(url: str, other: str) -> None:
    endpoint = replace(ENDPOINT, kind="url", url=url, database="db")
    assert endpoint.url_for("a b") == other
    assert endpoint.url_for("db") == url


def test_a_database_of_a_server_of_our_own_is_reached_over_tcp() -> None:
    assert ENDPOINT.url_for("db") == ENDPOINT.tcp_url("db", ENDPOINT.login)
