from work import each_test


@each_test
async def test_work(db, number):
    """The same five queries, on rows that no other test has."""
    mine = f"{number}/"
    await db.execute("INSERT INTO {{tables.t0}} (email) VALUES ($1 || 'a'), ($1 || 'b'), ($1 || 'c')", mine)
    await db.execute(
        "INSERT INTO {{tables.t1}} (email, parent_id) SELECT email, id FROM {{tables.t0}} WHERE email LIKE $1 || '%'",
        mine,
    )
    query = "SELECT email FROM {{tables.%s}} WHERE email LIKE $1 || '%%' ORDER BY email"
    assert len(await db.fetch_all(query % "t0", mine)) == 3
    assert len(await db.fetch_all(query % "t1", mine)) == 3
    assert await db.fetch_value("SELECT count(*) FROM {{tables.t0}}") > 3
