"""Names: whatever a service is called, the schema's name is one that PostgreSQL and pgdbm both take."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.ground import names

SERVICES = st.text(max_size=200) | st.sampled_from(
    ["users", "Users", "order-items", "1st", "o'hare", 'a"b', "ü", "", "x" * 200, "日本語", "İ", "a\0b", "🐘", "a\nb"]
)
RUNS = st.text("0123456789abcdef", min_size=10, max_size=10)
WORKERS = st.sampled_from(["main", "gw0", "gw117", "", "remote-host_3"]) | st.text(max_size=30)
NUMBERS = st.integers(0, 10**9)


@given(SERVICES, RUNS, WORKERS, NUMBERS)
def test_every_service_gets_a_plain_schema_name_that_can_be_read_back(
    service: str, run: str, worker: str, number: int
) -> None:
    name = names.schema_name(service, run=run, worker=worker, number=number)
    assert len(name.encode()) <= 63
    assert re.fullmatch(r"[a-z_][a-z0-9_]*", name, re.ASCII)
    parsed = names.parse_schema(name)
    assert parsed is not None
    assert (parsed.run, parsed.worker, parsed.number) == (run, names.worker_name(worker), number)
    assert names.identifier(service).startswith(parsed.service)
    assert str(parsed) == name


@given(RUNS, SERVICES, st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] != pair[1]))
def test_two_numbers_never_give_one_name_however_long_the_service(
    run: str, service: str, numbers: tuple[int, int]
) -> None:
    first, second = (names.schema_name(service, run=run, worker="gw0", number=n) for n in numbers)
    assert first != second


@given(RUNS, WORKERS)
def test_database_names_are_recognised(run: str, worker: str) -> None:
    name = names.database_name(run=run, worker=worker)
    assert names.is_ours(name)
    assert len(name.encode()) <= 63
    assert re.fullmatch(r"[a-z_][a-z0-9_]*", name, re.ASCII)


@pytest.mark.parametrize(
    "name",
    [
        "public",
        "pgdbm",
        "pgdbm_users",
        "pgdbm_0123456789_gw0_1_",
        "pgdbm_0123456789_gw0_1_users\n",
        "pgdbm_0123456789_gw0_01_users",
        "pgdbm_0123456789_gw0_\N{ARABIC-INDIC DIGIT ONE}_users",
        "pgdbm_0123456789_gw0_1_Users",
        "pgdbm_0123456789_gw0_1__users",
        "pgdbm_012345678_gw0_1_users",
        "pgdbm_0123456789_gw0_1_" + "u" * 60,
        "PGDBM_0123456789_GW0_1_USERS",
    ],
)
def test_a_schema_that_we_cannot_have_made_is_not_ours(name: str) -> None:
    assert names.parse_schema(name) is None


@pytest.mark.parametrize("name", ["postgres", "pgdbm", "pgdbm_shop", "pgdbm_0123456789", "pgdbm_0123456789_gw0\n"])
def test_a_database_that_we_cannot_have_made_is_not_ours(name: str) -> None:
    assert not names.is_ours(name)


@given(SERVICES)
def test_an_identifier_is_plain_and_stays_as_it_is_the_second_time(service: str) -> None:
    once = names.identifier(service)
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", once, re.ASCII)
    assert names.identifier(once) == once


def test_runs_do_not_repeat() -> None:
    runs = {names.new_run() for _ in range(1000)}
    assert len(runs) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{10}", run) for run in runs)


@given(st.text())
def test_a_quoted_identifier_reads_back_as_it_was(name: str) -> None:
    if "\0" in name:
        with pytest.raises(ValueError, match="NUL"):
            names.quote_ident(name)
        return
    quoted = names.quote_ident(name)
    assert quoted[0] == quoted[-1] == '"'
    assert quoted[1:-1].replace('""', '"') == name
    assert '"' not in quoted[1:-1].replace('""', "")


@given(st.text())
def test_a_quoted_literal_reads_back_as_it_was(text: str) -> None:
    if "\0" in text:
        with pytest.raises(ValueError, match="NUL"):
            names.quote_literal(text)
        return
    quoted = names.quote_literal(text)
    escaped = quoted.startswith(" E")
    inner = quoted.removeprefix(" E")[1:-1]
    assert escaped == ("\\" in text)
    assert inner.replace("''", "'").replace("\\\\", "\\") == text if escaped else inner.replace("''", "'") == text


def test_application_names_tell_run_worker_and_part_in_63_bytes() -> None:
    assert names.application_name(run="0123456789", worker="gw1", part="admin") == "pgdbm 0123456789 gw1 admin"
    assert len(names.application_name(run="0123456789", worker="w" * 90, part="x" * 90)) == 63


@given(RUNS, WORKERS, NUMBERS)
def test_the_name_of_a_sets_database_reads_back_and_that_of_a_worker_is_none(
    run: str, worker: str, number: int
) -> None:
    name = names.database_name(run=run, worker=worker, number=number)
    assert names.parse_database(name) == (run, names.worker_name(worker), number)
    assert names.is_ours(name)
    assert len(name.encode()) <= 63
    assert names.parse_database(names.database_name(run=run, worker=worker)) is None


@pytest.mark.parametrize(
    "name", ["postgres", "shop", "pgdbm_0123456789_gw0_x", "pgdbm_0123456789_gw0_01", "pgdbm_1_gw0_1"]
)
def test_nobody_elses_database_reads_as_a_sets(name: str) -> None:
    assert names.parse_database(name) is None


@pytest.mark.parametrize(
    ("service", "schema"),
    [
        ("users", "users"),
        ("order_items", "order_items"),
        ("_private", "_private"),
        ("a__b_", "a__b_"),
        ("public", "public"),
        ("Users", "users"),
        ("order-items", "order_items"),
        ("o'hare", "o_hare"),
        ("1st", "_1st"),
        ("pg_lag", "_pg_lag"),
        ("\N{LATIN SMALL LETTER U WITH DIAERESIS}", "service"),
        ("x" * 70, "x" * 63),
    ],
)
def test_the_real_name_of_a_service_is_its_own_where_that_is_a_plain_identifier(service: str, schema: str) -> None:
    assert names.real_name(service) == schema


@given(SERVICES)
def test_every_service_has_a_real_name_that_pgdbm_and_the_server_take(service: str) -> None:
    name = names.real_name(service)
    assert re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name, re.ASCII)
    assert not name.startswith("pg_")
    assert names.real_name(name) == name
