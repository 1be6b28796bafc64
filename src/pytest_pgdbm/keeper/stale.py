"""Takes away what runs have left whose processes and keeper were all killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pytest_pgdbm.ground.errors import PgdbmError
from pytest_pgdbm.ground.records import Process
from pytest_pgdbm.keeper import folder as folders
from pytest_pgdbm.keeper import holders
from pytest_pgdbm.servers.base import end_record, recorded
from pytest_pgdbm.servers.owned import take_away

_KEEPER = "keeper"
_DIED = "died"


def announce_keeper(folder: Path) -> None:
    """Notes in the folder that this process is its keeper."""
    this = Process.this()
    folders.write_json(folder / _KEEPER, {"pid": this.pid, "started": this.started})


def keeper_of(folder: Path) -> Process | None:
    """The folder's keeper if it lives."""
    known = folders.read_json(folder / _KEEPER)
    process = None if known is None else Process(**known)
    return process if process is not None and process.alive() else None


def forget_keeper(folder: Path) -> None:
    """Ends what was noted of the keeper and of its server, which are both gone."""
    end_record(folder)
    (folder / _DIED).unlink(missing_ok=True)
    (folder / _KEEPER).unlink(missing_ok=True)


def note_server_death(folder: Path, why: str) -> None:
    """Notes that the server has ended by itself, for the run's processes to tell."""
    folders.write_json(folder / _DIED, {"why": why})


def server_death(folder: Path) -> str | None:
    """How the server ended by itself; None if it did not."""
    known = folders.read_json(folder / _DIED)
    return None if known is None else str(known["why"])


def clear_server(folder: Path) -> None:
    """Takes away the server that the folder's record tells of, whatever state it is in.

    Raises ServerFailed if that cannot be done now.
    """
    for place in reversed(recorded(folder)):
        take_away(place)


def clear_if_abandoned(folder: Path) -> bool:
    """Clears the run's folder and its server if no process of the run lives, its keeper included.

    True if nothing is left. Raises ServerFailed if the server cannot be taken away now.
    """
    if _is_held(folder):
        return False
    try:
        with folders.door(folder):
            if _is_held(folder) or not _is_provably_a_run(folder):
                return False
            clear_server(folder)
            folders.remove_folder(folder)
    except folders.FolderGone:
        pass
    return True


def clear_runs(folder: Path) -> None:
    """Clears what runs have left that held this server, and have all been killed."""
    for lease, run in holders.ended_runs(folder):
        with contextlib.suppress(OSError, PgdbmError):
            if run.exists():
                clear_if_abandoned(run)
            lease.unlink()


def sweep(parent: Path, mine: Path | None = None) -> None:
    """Clears the folders of dead runs, without looking at `mine`. What cannot be cleared stays for the next run."""
    for other in parent.glob(f"pgdbm-{folders.user()}-*"):
        if other != mine and folders.is_ours(other):
            with contextlib.suppress(OSError, PgdbmError):
                _sweep(other)


def abandoned(parent: Path) -> list[Path]:
    """The folders that `sweep` would clear; nothing is changed."""
    found = sorted(parent.glob(f"pgdbm-{folders.user()}-*"))
    return [other for other in found if folders.is_ours(other) and _is_abandoned(other)]


def _is_abandoned(other: Path) -> bool:
    match = folders.NAME.fullmatch(other.name)
    if match is not None and match["ended"]:
        return True
    with contextlib.suppress(OSError):  # it is just being removed
        return not _is_held(other) and _is_provably_a_run(other)
    return False


def _sweep(other: Path) -> None:
    match = folders.NAME.fullmatch(other.name)
    if match is not None and match["ended"]:
        folders.remove_folder(other)
    else:
        clear_if_abandoned(other)


def _is_held(folder: Path) -> bool:
    return holders.anyone(folder) or keeper_of(folder) is not None


def _is_provably_a_run(folder: Path) -> bool:
    match = folders.NAME.fullmatch(folder.name)
    return match is not None and (folders.signed(folder, match["run"]) or folders.is_bare(folder))
