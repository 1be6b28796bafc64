import asyncpg
import pytest
from archive import file_document, log_in
from pgdbm.errors import QueryError


def test_the_server_runs_in_a_container(pgdbm_server):
    assert pgdbm_server.kind == "container"


async def test_log_in(people_db):
    assert await log_in(people_db, "archivist", "please change me") == 1
    assert await log_in(people_db, "archivist", "a guess") is None


async def test_secrets_are_not_stored(people_db):
    await people_db.execute("UPDATE {{tables.people}} SET secret = 'better' WHERE id = 1")
    assert await people_db.fetch_value("SELECT secret FROM {{tables.people}}") != "better"
    assert await log_in(people_db, "archivist", "better") == 1


async def test_documents_have_owners(people_db, documents_db):
    document = await file_document(documents_db, 1, "On the engine")
    titles = await documents_db.fetch_all("SELECT title FROM {{tables.documents}} ORDER BY title")
    assert [row["title"] for row in titles] == ["Catalogue", "On the engine"]
    assert document.version == 4
    with pytest.raises(QueryError) as refused:
        await people_db.execute("DELETE FROM {{tables.people}}")
    assert isinstance(refused.value.__cause__, asyncpg.ForeignKeyViolationError)
