from pytest_pgdbm import pgdbm_db

people_db = pgdbm_db("people")
documents_db = pgdbm_db("documents", seed={"documents": [{"owner_id": 1, "title": "Catalogue"}]})
