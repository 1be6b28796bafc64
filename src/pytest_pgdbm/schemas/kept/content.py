"""What a set is made from, as a digest that another run arrives at too: equal for an equal content."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_pgdbm.ground.errors import BuildError
from pytest_pgdbm.schemas.plan import Member, Plan
from pytest_pgdbm.services.files import fingerprint, read_migrations, read_seed
from pytest_pgdbm.services.service import is_path, is_rows

# Whose `repr` says all that is in them.
_PLAIN = {
    *(type(None), bool, int, float, str, bytes, decimal.Decimal, uuid.UUID),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
}


def content(plan: Plan, others: Sequence[str], settings: Sequence[str]) -> str | None:
    """The digest; None if what the set is made from cannot be told by looking at it, as what a function does.

    `others` are the other services that the run knows, `settings` what counts besides the services. Raises SeedError
    if the file of a seed cannot be read.
    """
    if any(not _is_plain(seed) for member in plan.members for seed in member.service.seeds):
        return None
    digest = hashlib.sha256(repr((plan.isolation, sorted(others), list(settings))).encode())
    for member in plan.members:
        digest.update(repr((member.name, sorted(member.extensions), _services(member))).encode())
    return digest.hexdigest()


def as_read(plan: Plan) -> bool:
    """Whether the migrations are on disk what they were when the plan was made."""
    try:
        return all(read_migrations(Path(each.service.migrations), each.name) == each.files for each in plan.members)
    except BuildError:
        return False


def _services(member: Member) -> str:
    seeds = (read_seed(Path(seed), member.name) for seed in member.service.seeds if is_path(seed))
    return fingerprint(member.service, member.files, seeds)


def _is_plain(seed: Any) -> bool:
    if is_path(seed):
        return True
    return is_rows(seed) and all(type(value) in _PLAIN for value in _values(seed))


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _values(inner)
    elif type(value) in (list, tuple):
        for inner in value:
            yield from _values(inner)
    else:
        yield value
