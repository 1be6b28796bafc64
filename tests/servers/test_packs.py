"""A folder comes out of its pack as it went in, and a pack that was changed is noticed."""

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_pgdbm.servers import packs

NAMES = st.text("abcXYZ019_.-ü ", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
CONTENTS = st.one_of(st.binary(max_size=40), st.binary(max_size=10).map(lambda start: start + bytes(5000)))
TREES = st.recursive(CONTENTS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8).filter(
    lambda tree: isinstance(tree, dict)
)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def plant(tree, at):
    at.mkdir()
    for name, inner in tree.items():
        if isinstance(inner, dict):
            plant(inner, at / name)
        else:
            (at / name).write_bytes(inner)


def seen(at):
    return {entry.name: seen(entry) if entry.is_dir() else entry.read_bytes() for entry in at.iterdir()}


def packed(folder):
    with (folder / "pack").open("wb") as opened:
        packs.write(folder / "source", opened)
    return folder / "pack"


@settings(deadline=None)
@given(TREES)
def test_a_folder_comes_out_as_it_went_in(tree):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(tree, folder / "source")
        with packed(folder).open("rb") as opened:
            packs.read(opened, folder / "target")
        assert seen(folder / "target") == tree
        with (folder / "pack").open("rb") as opened:
            assert packs.is_sound(opened)


def test_what_comes_out_is_closed_to_others_whatever_it_was(folder):
    plant({"inner": {"file": b"x"}}, folder / "source")
    for at in (folder / "source", folder / "source/inner", folder / "source/inner/file"):
        at.chmod(0o777)
    before = os.umask(0)
    try:
        with packed(folder).open("rb") as opened:
            packs.read(opened, folder / "target")
    finally:
        os.umask(before)
    modes = [(folder / "target" / at).stat().st_mode & 0o777 for at in ("", "inner", "inner/file")]
    assert modes == [0o700, 0o700, 0o600]


def test_zeros_at_a_files_end_take_no_room(folder):
    plant({"sparse": b"start" + bytes(1 << 20)}, folder / "source")
    assert packed(folder).stat().st_size < 1000
    with (folder / "pack").open("rb") as opened:
        packs.read(opened, folder / "target")
    assert (folder / "target/sparse").stat().st_size == 5 + (1 << 20)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_whatever_is_changed_is_noticed(at, bit, cut):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant({"a": b"one" * 30, "inner": {"b": b"two" * 30, "c": b""}}, folder / "source")
        content = bytearray(packed(folder).read_bytes())
        at %= len(content)
        if cut:
            del content[at:]
        else:
            content[at] ^= 1 << bit
        (folder / "pack").write_bytes(content)
        with (folder / "pack").open("rb") as opened:
            assert not packs.is_sound(opened)


@pytest.mark.parametrize("content", [b"", b"\n", b"1 2\n", b"-1 -2 -3\n", b"1 0 0\n", b"x" * 300, b"2 2 0\n{}"])
def test_what_is_no_pack_is_refused(folder, content):
    (folder / "pack").write_bytes(content)
    with (folder / "pack").open("rb") as opened, pytest.raises(packs.Damaged):
        packs.read(opened, folder / "target")
    assert not (folder / "target").exists()


def test_a_full_disk_is_an_error():
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with tempfile.TemporaryDirectory() as name, pytest.raises(OSError, match="No space left"):
        packs.write(Path(name), Full())
