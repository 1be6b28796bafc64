"""The files of databases that wait with a kept server: nobody else's are read, and each is read once."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_pgdbm.keeper import waiting

ONE, TWO, THREE = (f"pgdbm_0123456789_gw{number}" for number in range(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    return folder


def put(folder: Path, *names: str) -> None:
    """Has these wait, the first the longest."""
    for number, name in enumerate(names):
        assert waiting.put(folder, name, b'{"sets": %d}\nof ' % (number + 1) + name.encode())
        os.utime(folder / "waiting" / name, (number, number))


def test_what_was_put_is_taken_once_and_the_latest_first(folder: Path) -> None:
    put(folder, ONE, TWO)
    taken = waiting.take(folder)
    assert next(taken) == (TWO, b'{"sets": 2}\nof ' + TWO.encode())
    assert waiting.trim(folder, 9) == [ONE]
    assert [name for name, _ in waiting.take(folder)] == [ONE]
    assert list(waiting.take(folder)) == []
    assert list((folder / "waiting").iterdir()) == []


def test_nothing_waits_where_nothing_was_put(folder: Path) -> None:
    assert list(waiting.take(folder)) == []
    assert waiting.trim(folder, 1) == []
    assert waiting.counts(folder) == []
    waiting.clear(folder)


def test_only_the_last_ones_go_on_waiting(folder: Path) -> None:
    put(folder, ONE, TWO, THREE)
    assert waiting.counts(folder) == [3, 2, 1]
    assert waiting.trim(folder, 2) == [THREE, TWO]
    assert waiting.counts(folder) == [3, 2]
    waiting.clear(folder)
    assert waiting.counts(folder) == []


def test_of_many_who_take_at_once_each_gets_another_one(folder: Path) -> None:
    names = [f"pgdbm_0123456789_gw{number}" for number in range(60)]
    put(folder, *names)
    taken: list[str] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(name for name, _ in waiting.take(folder))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(names)


def test_where_nothing_can_be_written_nothing_waits(tmp_path: Path) -> None:
    assert waiting.put(tmp_path / "gone" / "file", ONE, b"") is True
    (tmp_path / "file").write_text("")
    assert waiting.put(tmp_path / "file", ONE, b"") is False


def test_files_of_other_names_are_left_alone(folder: Path) -> None:
    put(folder, ONE)
    for name in ("postgres", "pgdbm_0123456789_gw0.1234abcd", ".pgdbm_0123456789_gw0"):
        (folder / "waiting" / name).write_bytes(b"")
    assert [name for name, _ in waiting.take(folder)] == [ONE]


@pytest.mark.skipif(sys.platform == "win32", reason="files have modes where there is POSIX")
def test_files_and_folder_are_the_users_alone(folder: Path) -> None:
    put(folder, ONE)
    assert stat.S_IMODE((folder / "waiting").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "waiting" / ONE).stat().st_mode) == 0o600


def _link(folder: Path) -> None:
    file = folder / "waiting" / ONE
    file.rename(folder / "elsewhere")
    file.symlink_to(folder / "elsewhere")


STRANGE: dict[str, Callable[[Path], object]] = {
    "a file that others may write": lambda folder: (folder / "waiting" / ONE).chmod(0o622),
    "a folder that others may write in": lambda folder: (folder / "waiting").chmod(0o772),
    "a link": _link,
    "a folder": lambda folder: ((folder / "waiting" / ONE).unlink(), (folder / "waiting" / ONE).mkdir()),
}


@pytest.mark.skipif(sys.platform == "win32", reason="files have modes where there is POSIX")
@pytest.mark.parametrize("what", STRANGE)
def test_what_another_user_may_have_written_is_not_read(folder: Path, what: str) -> None:
    put(folder, ONE)
    STRANGE[what](folder)
    assert list(waiting.take(folder)) == []
    assert waiting.counts(folder) == []


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"sets": "many"}', b"\xff", b'{"sets": null}'])
def test_a_first_line_that_says_nothing_counts_as_no_set(folder: Path, line: bytes) -> None:
    assert waiting.put(folder, ONE, line)
    assert waiting.counts(folder) == [0]
