"""The collector of garbage is as it was, after what it has waited for."""

from __future__ import annotations

import gc

import pytest

from pytest_pgdbm.ground.garbage import uncollected


def fail_uncollected() -> None:
    with uncollected():
        assert not gc.isenabled()
        raise RuntimeError("went wrong")


def test_it_waits_and_goes_on_whatever_comes_of_it() -> None:
    with pytest.raises(RuntimeError, match="went wrong"):
        fail_uncollected()
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
