"""How a server's connections are shared out among a run's processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.connections.budget import Budget, fewest_with_databases, fitting, needed
from pytest_pgdbm.ground.endpoint import Endpoint, Login, ServerKind

SERVER = Endpoint("url", "18.1", "localhost", 5432, "db", Login("me"), Login("me"))


@pytest.mark.parametrize(
    ("connections", "workers", "budget"),
    [
        (100, 1, Budget(10, 9, 8, 95)),
        (100, 4, Budget(10, 4, 2, 22)),
        (100, 12, Budget(6, 2, 2, 6)),
        (43, 8, Budget(3, 1, 2, 3)),
        (40, 8, Budget(2, 0, 2, 2)),
        (12, 3, Budget(2, 0, 2, 2, spare=False)),
        (10, 4, Budget(2, 0, 2, 0, tickets=2, spare=False)),
        (20, 8, Budget(2, 0, 2, 0, tickets=8, spare=False)),
        (11, 8, Budget(2, 0, 2, 0, tickets=2, spare=False)),
    ],
)
def test_what_a_server_of_so_many_connections_gives_to_each_of_so_many_workers(
    connections: int, workers: int, budget: Budget
) -> None:
    assert Budget.of(replace(SERVER, max_connections=connections), workers) == budget


@given(st.integers(6, 5000), st.integers(0, 20), st.integers(0, 128))
def test_no_more_is_given_than_there_is(usable: int, reserved: int, workers: int) -> None:
    server = replace(SERVER, max_connections=usable + reserved, reserved_connections=reserved)
    budget, each = Budget.of(server, workers), max(workers, 1)
    assert budget.idle >= 2
    assert 2 <= budget.pool <= 10
    assert 0 <= budget.databases <= 9
    if budget.tickets:
        assert budget.seats == budget.databases == 0
        assert not budget.spare
        assert usable < 3 * each
        assert budget.tickets == 2 or each + budget.tickets + 1 <= usable
    else:
        assert budget.pool <= budget.seats
        assert each * (1 + budget.spare + budget.seats) <= usable


@pytest.mark.parametrize("kind", ["url", "embedded"])
@given(st.integers(6, 5000), st.integers(1, 128))
def test_databases_have_room_for_their_connections_and_a_pool_or_there_are_none(
    kind: ServerKind, usable: int, workers: int
) -> None:
    server = replace(SERVER, kind=kind, max_connections=usable, reserved_connections=0)
    budget, makes_databases = Budget.of(server, workers), kind != "url"
    if budget.databases:
        assert budget.spare
        assert budget.seats - budget.databases - makes_databases >= 2
    else:
        assert workers > fitting(server, fewest_with_databases(server)) or usable < fewest_with_databases(server)
        assert usable < needed(server, workers, fewest_with_databases(server))


@given(st.integers(3, 5000), st.integers(0, 20), st.integers(1, 128))
def test_what_is_said_to_fit_has_no_worker_wait_for_its_turn(usable: int, reserved: int, workers: int) -> None:
    server = replace(SERVER, max_connections=usable + reserved, reserved_connections=reserved)
    assert Budget.of(server, fitting(server)).tickets == 0
    assert Budget.of(server, fitting(server) + 1).tickets > 0
    enough = replace(server, max_connections=needed(server, workers))
    assert Budget.of(enough, workers).tickets == 0
