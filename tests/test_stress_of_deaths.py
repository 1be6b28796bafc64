"""The stress runs of deaths, at a small scale: `python -m benchmarks.stress kills` and `overlap` do more."""

from __future__ import annotations

from benchmarks.stress import kills, overlap


def test_twenty_runs_that_are_killed_at_random_moments_leave_nothing_and_hurt_nobody() -> None:
    outcome = kills.stressed(20, at_once=2)
    assert outcome.good, outcome


def test_runs_that_overlap_and_die_never_see_each_other() -> None:
    outcome = overlap.stressed(60)
    assert outcome.good, outcome
