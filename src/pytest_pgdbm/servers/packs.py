"""A folder in one file, which is read faster than a tree, and of which each byte is accounted for.

The file: a line with the format and with length and checksum of what follows; a line of JSON with the folders, the
files and their sizes; the files' bytes one after the other. Zeros at a file's end are not kept, so that what was
sparse stays small.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

FORMAT = 1
"""Changes with everything that would make older files be misread."""

_BINARY = getattr(os, "O_BINARY", 0)
_CHUNK = 1 << 20
_LONGEST_LINE = 100


class Damaged(Exception):
    """The file is not what `write` wrote, or not all of it."""


class _Contents(NamedTuple):
    """`files` holds of each its name, its size, and how many of its bytes are kept; `checksum` is of all kept bytes."""

    folders: list[str]
    files: list[tuple[str, int, int]]
    checksum: int


def write(folder: Path, opened: BinaryIO) -> None:
    """Packs the folder. Raises OSError; what was written is worth nothing then."""
    contents = _look(folder)
    text = json.dumps(contents._asdict()).encode()
    opened.write(b"%d %d %d\n" % (FORMAT, len(text), zlib.crc32(text)) + text)
    for name, _, kept in contents.files:
        opened.write((folder / name).read_bytes()[:kept])


def read(opened: BinaryIO, target: Path, owner: tuple[int, int] | None = None) -> None:
    """Unpacks into the new folder `target`, closed to other users than `owner` (user and group), or than the caller.

    The bytes are not looked at: that is what `is_sound` is for. Raises Damaged and OSError.
    """
    contents = _contents(opened)
    for folder in ("", *contents.folders):
        _make_folder(target / folder, owner)
    into = f"{target}{os.sep}"
    for name, size, kept in contents.files:
        _put(opened.read(kept), into + name, size, owner)


def is_sound(opened: BinaryIO) -> bool:
    """Whether the bytes are those that were packed."""
    try:
        wanted = _contents(opened).checksum
    except Damaged:
        return False
    checksum = 0
    while chunk := opened.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum == wanted


def _look(folder: Path) -> _Contents:
    folders: list[str] = []
    files: list[tuple[str, int, int]] = []
    checksum = 0
    for at, inner, names in os.walk(folder):
        folders += [str(Path(at, name).relative_to(folder)) for name in inner]
        for file in (Path(at, name) for name in names):
            content = file.read_bytes()
            kept = content.rstrip(b"\0")
            checksum = zlib.crc32(kept, checksum)
            files.append((str(file.relative_to(folder)), len(content), len(kept)))
    return _Contents(folders, files, checksum)


def _contents(opened: BinaryIO) -> _Contents:
    words = opened.readline(_LONGEST_LINE).split()
    if len(words) != 3 or words[0] != b"%d" % FORMAT or not (words[1] + words[2]).isdigit():
        raise Damaged("its first line is not that of a pack")
    text = opened.read(int(words[1]))
    if not text or zlib.crc32(text) != int(words[2]):
        raise Damaged("its list of files is not what was written")
    contents = _Contents(**json.loads(text))
    if opened.tell() + sum(kept for _, _, kept in contents.files) != os.fstat(opened.fileno()).st_size:
        raise Damaged("it has another size than was written")
    return contents


def _make_folder(at: Path, owner: tuple[int, int] | None) -> None:
    at.mkdir(mode=0o700)
    if owner is not None:
        os.chown(at, *owner, follow_symlinks=False)


def _put(content: bytes, at: str, size: int, owner: tuple[int, int] | None) -> None:
    # Plain system calls: there are a thousand files, and objects around them would double the time.
    descriptor = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
    try:
        if content:
            _write(descriptor, content)
        if len(content) < size:
            os.truncate(descriptor, size)
        if owner is not None:
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    written = os.write(descriptor, content)
    # A disk that has just become full takes a part.
    while written < len(content):
        written += os.write(descriptor, content[written:])
