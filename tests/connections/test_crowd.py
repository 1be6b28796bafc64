"""What is said of a wait for a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from pytest_pgdbm import NoConnection
from pytest_pgdbm.connections import crowd
from pytest_pgdbm.connections.crowd import Crowd, Held
from pytest_pgdbm.ground.endpoint import Endpoint, Login

SERVER = replace(
    Endpoint("url", "18.1", "db.example.org", 5432, "app_test", Login("app"), Login("app")),
    max_connections=40,
    workers=4,
)
OURS = [("gw0 pool", 2), ("gw1 pool", 2), *((f"gw{number} admin", 1) for number in range(4)), ("gw2 pool", 1)]
HELD = [
    Held("billing", "billing", "billing", 28, ours=False),
    *(Held(f"pgdbm 3f0a9c51d2 {what}", "app", "app_test", number, ours=True) for what, number in OURS),
]
ERRORS = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"


async def held() -> Sequence[Held]:
    return HELD


async def cut_off() -> Sequence[Held]:
    raise asyncpg.ConnectionDoesNotExistError("gone")


def test_the_whole_text_is_as_the_page_on_errors_shows_it() -> None:
    text = asyncio.run(Crowd(SERVER, ask=held).text("the server says: sorry, too many clients already", 30.2))
    assert text in ERRORS.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 5


def test_where_nobody_can_be_asked_it_says_so() -> None:
    text = asyncio.run(Crowd(SERVER, ask=cut_off).text("why", 7))
    assert "  held: who holds them could not be asked\n" in text


def test_it_says_how_many_more_would_be_enough_for_the_workers() -> None:
    text = asyncio.run(Crowd(replace(SERVER, workers=30)).text("why", 7))
    assert "  needed: 90 for 30 workers, each one to build and two for a test\n" in text
    assert text.endswith("to mend it: max_connections = 93 or more, fewer other clients, or fewer workers: -n 12 fits")


@pytest.mark.parametrize(("limited", "whose"), [('ROLE "App"', 'role "App"'), ('DATABASE "Shop"', 'database "Shop"')])
def test_where_a_role_or_database_has_the_limit_it_says_whose(limited: str, whose: str) -> None:
    endpoint = replace(SERVER, workers=8, max_connections=20, reserved_connections=0, limited=limited)
    others = [Held("billing", "App", "Shop", 8, ours=False), Held("psql", "app", "shop", 4, ours=False)]

    async def held() -> Sequence[Held]:
        return others

    lines = asyncio.run(Crowd(endpoint, ask=held).text("why", 7)).splitlines()
    assert lines[1] == f"  CONNECTION LIMIT of {whose}: 20"
    assert lines[-1] == (
        f"  to mend it: ALTER {limited} CONNECTION LIMIT 32 or more, fewer other clients, or fewer workers: -n 4 fits"
    )


def test_a_wait_is_told_once_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "SECONDS_TO_TELL", 0.05)
    monkeypatch.setattr(crowd, "SECONDS_TO_WAIT", 0.3)
    said: list[str] = []
    waiting = Crowd(SERVER, ask=held, say=said.append)

    async def go() -> None:
        wait = waiting.wait()
        with pytest.raises(NoConnection, match="waited 0 seconds for a connection to db") as no:
            await forever(wait)
        assert isinstance(no.value, asyncpg.TooManyConnectionsError)

    asyncio.run(go())
    assert len(said) == 1
    assert waiting.patience == crowd.SECONDS_TO_WAIT_AGAIN
    waiting.wait().over()
    assert waiting.patience == 0.3


async def forever(wait: crowd.Wait) -> None:
    while True:
        await wait.pause("why")


def test_a_password_is_masked_in_what_the_server_says() -> None:
    text = asyncio.run(Crowd(SERVER).text("cannot reach postgresql://me:secret@db/app", 1))
    assert "secret" not in text
