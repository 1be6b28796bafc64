import asyncio

import asyncpg
import pytest
from notebook import correct_note, find_user, search, sign_up, write_note
from pgdbm.errors import QueryError


async def test_sign_up(users_db):
    ada = await sign_up(users_db, "ada@example.org")
    assert ada == 2  # the librarian is there before
    assert (await find_user(users_db, "ADA@Example.ORG"))["id"] == ada


async def test_every_test_starts_from_the_migrations(users_db):
    rows = await users_db.fetch_all("SELECT id, email FROM {{tables.users}}")
    assert rows == [{"id": 1, "email": "librarian@example.org"}]


async def test_notes_belong_to_users(pgdbm_db):
    users, notes = await pgdbm_db("users", "notes")
    ada = await sign_up(users, "ada@example.org")
    note = await write_note(notes, ada, "The engine weaves algebraical patterns.")
    assert await search(notes, "algebraic pattern") == ["ada@example.org: The engine weaves algebraical patterns."]
    corrected = await correct_note(notes, note, "It weaves flowers and leaves.")
    assert corrected["corrected_at"] > corrected["written_at"]


async def test_a_note_without_an_author_is_refused(pgdbm_db):
    notes = await pgdbm_db("notes")
    with pytest.raises(QueryError) as refused:
        await write_note(notes, 77, "Who wrote this?")
    assert isinstance(refused.value.__cause__, asyncpg.ForeignKeyViolationError)


def test_a_synchronous_test_needs_no_event_loop(pgdbm_db):
    users = pgdbm_db("users").get()
    assert asyncio.run(sign_up(users, "grace@example.org")) == 2
