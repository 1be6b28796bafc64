"""What a test left behind, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_pgdbm.connections.backends import Activity
from pytest_pgdbm.connections.pools import Checkout
from pytest_pgdbm.connections.terms import Term
from pytest_pgdbm.schemas.drop import Kept
from pytest_pgdbm.schemas.holders import Holder

_LONGEST_QUERY = 200


class Leak(NamedTuple):
    """Something that was not as it should be when a test's sets were given back.

    `test` is whose it was, "" if that is not known for sure; `kept` is the schema or database that stays on the
    server, "" for a connection.
    """

    test: str
    message: str
    kept: str = ""


def describe(
    tests: Sequence[str],
    out: Sequence[Checkout],
    holders: Sequence[Holder],
    kept: Sequence[Kept],
) -> list[Leak]:
    """One finding for each connection that was cut off, and for each schema that had to stay."""
    whose = " or ".join(tests) or "a test"
    test = tests[0] if tests else ""
    leaks = [Leak(_owner(checkout) or test, _connection(_owner(checkout) or whose, checkout)) for checkout in out]
    leaks += [Leak(test, _transaction(whose, holder)) for holder in holders]
    leaks += [Leak(test, f"{each.kind} {each.name} of {whose} was kept: {each.why}", each.name) for each in kept]
    return leaks


def _owner(checkout: Checkout) -> str:
    return checkout.owner.test if isinstance(checkout.owner, Term) else checkout.test


def _connection(whose: str, checkout: Checkout) -> str:
    doing = f", {_doing(checkout.activity)}" if checkout.activity else ""
    return (
        f"{whose} ended without giving back a connection that it took at {checkout.place}"
        f" (server process {checkout.pid}{doing}). It was cut off; release it, or use 'async with'"
    )


def _transaction(whose: str, holder: Holder) -> str:
    what, then = "still held locks on what is in its schemas", "It was cut off; end its transaction in the test"
    if holder.writing:
        what = "was in a transaction that had written something"
        then = "It goes on, and its schemas were given up; end its transaction in the test"
    elif not holder.locks:
        what, then = "to its database was still open", "It was cut off; close it in the test"
    return (
        f"{whose} ended, and a connection {what}: server process {holder.pid},"
        f" {holder.application!r}, {_doing(holder)}. {then}"
    )


def _doing(each: Activity | Holder) -> str:
    query = " ".join(each.query.split())
    if len(query) > _LONGEST_QUERY:
        query = query[:_LONGEST_QUERY] + "…"
    return f"{each.state}, last query {query!r}"
