"""What was found wrong when sets were given back, as pytest tells it: a warning of the test that caused it.

A set is looked at while the next test runs already. What is found then is told at the end of that one, or of the run,
but with the name and the place of the test that it is about: as one of its warnings, or, where warnings are errors,
as an error of its teardown.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_pgdbm.ground.errors import PgdbmLeakWarning, PgdbmWarning

if TYPE_CHECKING:
    from pytest_pgdbm.leasing.leaks import Leak


def tell(session: pytest.Session, found: Sequence[Leak], running: pytest.Item | None) -> None:
    """Tells findings. Raises a warning about the running test, if the user has that kind of warning raised."""
    about = {
        label: [leak for leak in found if leak.test == label] for label in dict.fromkeys(each.test for each in found)
    }
    now = about.pop(running.nodeid, []) if running is not None else []
    for label, leaks in about.items():
        for text, category in _texts(leaks):
            _tell_late(session, label, text, category)
    if running is not None:
        for text, category in _texts(now):
            path, line = _place(running)
            warnings.warn_explicit(text, category, path, line)


def _texts(leaks: Sequence[Leak]) -> list[tuple[str, type[Warning]]]:
    # One warning for all of a kind: where warnings are errors, the first would swallow the rest.
    kept, cut_off = [each for each in leaks if each.kept], [each for each in leaks if not each.kept]
    kinds = ((kept, PgdbmWarning), (cut_off, PgdbmLeakWarning))
    texts = (("\n".join(leak.message for leak in some), category) for some, category in kinds)
    return [(text, category) for text, category in texts if text]


def _tell_late(session: pytest.Session, label: str, text: str, category: type[Warning]) -> None:
    item = next((item for item in session.items if item.nodeid == label), None)
    path, line = _place(item) if item is not None else (str(session.config.rootpath), 1)
    with warnings.catch_warnings(record=True) as caught:
        try:
            warnings.warn_explicit(text, category, path, line)
        except category as error:
            _fail(session, label, item, f"{category.__module__}.{category.__name__}: {error}")
    for warning in caught:
        session.config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": warning, "nodeid": label, "when": "runtest", "location": None}
        )


def _fail(session: pytest.Session, label: str, item: pytest.Item | None, message: str) -> None:
    location = item.location if item is not None else (label, None, label)
    report = pytest.TestReport(label, location, {}, "failed", message, "teardown")
    session.config.hook.pytest_runtest_logreport(report=report)


def _place(item: pytest.Item) -> tuple[str, int]:
    path, line, _ = item.reportinfo()
    return str(path), (line or 0) + 1
