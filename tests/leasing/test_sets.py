"""Which services belong together, and the order in which they are built."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.ground.errors import ConfigError, UnknownService
from pytest_pgdbm.leasing.sets import build_order, component, needed, ties
from pytest_pgdbm.services.service import Service

USERS = Service("users")
ORDERS = Service("orders")
SQL = {
    "users": [("users/1.sql", "create table {{tables.users}} ()")],
    "orders": [
        ("orders/1.sql", "create table {{tables.orders}} ()"),
        ("orders/2.sql", "-- {{tables.payments.x}}\nselect 1 from {{tables.users.users}}, {{tables.orders.orders}},\n"),
        ("orders/3.sql", "select 1 from {{tables.users.users}}, {{tables.audit.log}}"),
    ],
}


def texts(service: Service) -> Iterable[tuple[str, str]]:
    return SQL.get(str(service.migrations), [])


def test_a_need_is_found_in_the_sql_and_told_with_its_first_place() -> None:
    services = {"orders": ORDERS, "users": USERS, "payments": Service("payments")}
    assert ties(services, texts) == {"orders": {"users": "orders/2.sql:2"}, "users": {}, "payments": {}}


def test_a_declared_need_counts_before_one_that_is_found() -> None:
    services = {"orders": Service("orders", needs=["users", "orders"]), "users": USERS}
    assert ties(services, texts)["orders"] == {"users": "declared"}


def test_a_service_with_an_odd_name_is_needed_by_its_plain_form() -> None:
    services = {"orders": Service("x", needs="order_items"), "order-items": USERS}
    assert ties(services, texts)["orders"] == {"order-items": "declared"}


def test_what_is_needed_is_found_over_others_but_not_what_needs_it() -> None:
    tied = {"a": {"b": "x"}, "b": {"c": "x"}, "c": {}, "d": {"c": "x"}}
    assert needed(["a"], tied) == {"a", "b", "c"}
    assert needed(["c"], tied) == {"c"}
    assert needed(["d", "b"], tied) == {"b", "c", "d"}


def test_a_declared_need_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(UnknownService) as caught:
        ties({"orders": Service("orders", needs="user"), "users": USERS}, texts)
    assert str(caught.value).splitlines()[:3] == [
        "unknown service 'user'; did you mean 'users'?",
        "  known services: orders, users",
        "  looked in: needs= of service 'orders'",
    ]


TIES = {
    "orders": {"users": "declared"},
    "payments": {"orders": "payments/1.sql:1"},
    "users": {},
    "audit": {"users": "declared"},
    "mail": {},
    "news": {"mail": "declared"},
}


@pytest.mark.parametrize("name", ["users", "orders", "payments", "audit"])
def test_a_set_is_all_that_is_tied_in_either_direction(name: str) -> None:
    assert component(name, TIES) == {"users", "orders", "payments", "audit"}


def test_services_without_ties_are_sets_of_their_own() -> None:
    assert component("mail", TIES) == component("news", TIES) == {"mail", "news"}
    assert component("unheard-of", TIES) == {"unheard-of"}


def test_what_is_needed_is_built_first_and_the_rest_by_name() -> None:
    assert build_order(component("users", TIES), TIES) == ["users", "audit", "orders", "payments"]
    assert build_order(["news", "mail"], TIES) == ["mail", "news"]
    assert build_order(["c", "a", "b"], {}) == ["a", "b", "c"]


def test_a_need_outside_of_the_set_does_not_hold_it_up() -> None:
    assert build_order(["orders"], TIES) == ["orders"]


def test_a_ring_is_told_with_the_files_that_make_it() -> None:
    ring = {
        "users": {"orders": "declared"},
        "orders": {"users": "orders/sql/002.sql:3"},
        "audit": {"users": "declared"},
    }
    with pytest.raises(ConfigError) as caught:
        build_order(component("audit", ring), ring)
    assert str(caught.value) == (
        "services need each other in a ring: orders needs users (orders/sql/002.sql:3), users needs orders (declared);"
        " none of them can be built first, so take one need out"
    )


def test_a_longer_ring_is_told_from_its_first_name_without_what_hangs_on_it() -> None:
    ring = {"c": {"a": "1"}, "a": {"b": "2"}, "b": {"c": "3"}, "0": {"c": "4"}, "d": {}}
    with pytest.raises(ConfigError, match=r"a needs b \(2\), b needs c \(3\), c needs a \(1\);"):
        build_order(ring, ring)


NAMES = st.sampled_from("abcdefg")
GRAPHS = st.dictionaries(NAMES, st.dictionaries(NAMES, st.just("declared")), min_size=1)


@given(GRAPHS)
def test_an_order_exists_or_a_true_ring_is_told(graph: dict[str, dict[str, str]]) -> None:
    needs = {name: {n: r for n, r in found.items() if n != name} for name, found in graph.items()}
    for name in needs:
        members = component(name, needs)
        assert all(component(other, needs) == members for other in members)
        try:
            order = build_order(members, needs)
        except ConfigError as error:
            told = str(error).removeprefix("services need each other in a ring: ").partition(";")[0].split(", ")
            steps = [tuple(step.removesuffix(" (declared)").split(" needs ")) for step in told]
            assert all(need in needs[service] for service, need in steps)
            assert [need for _, need in steps] == [*[service for service, _ in steps[1:]], steps[0][0]]
        else:
            assert sorted(order) == sorted(members)
            places = {service: at for at, service in enumerate(order)}
            assert all(places[need] < places[service] for service in order for need in needs.get(service, ()))
