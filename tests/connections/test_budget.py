"""How a server's connections are shared out among a run's processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.connections.budget import Budget
from pytest_pgdbm.ground.endpoint import Endpoint, Login

SERVER = Endpoint("url", "18.1", "localhost", 5432, "db", Login("me"), Login("me"))


@pytest.mark.parametrize(
    ("connections", "workers", "budget"),
    [(100, 1, Budget(10, 9, 8)), (100, 4, Budget(10, 4, 2)), (100, 12, Budget(7, 2, 2)), (10, 4, Budget(2, 2, 2))],
)
def test_what_a_server_of_so_many_connections_gives_to_each_of_so_many_workers(
    connections: int, workers: int, budget: Budget
) -> None:
    assert Budget.of(replace(SERVER, max_connections=connections), workers) == budget


@given(st.integers(30, 5000), st.integers(0, 20), st.integers(1, 64))
def test_no_more_is_given_than_there_is_where_a_worker_has_twenty_connections(
    connections: int, reserved: int, workers: int
) -> None:
    share = (connections - reserved) // workers
    budget = Budget.of(replace(SERVER, max_connections=connections, reserved_connections=reserved), workers)
    assert 2 <= budget.idle <= budget.pool <= 10
    assert 2 <= budget.databases <= 9
    if share >= 20:
        assert 2 + budget.pool + budget.databases * (1 + budget.idle) <= share
