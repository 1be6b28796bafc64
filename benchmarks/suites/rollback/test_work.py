from work import each_test, work


@each_test
async def test_work(db, number):
    await work(db)
