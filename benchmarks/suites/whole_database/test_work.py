from work import each_test, work


@each_test
async def test_work(database, number):
    await work(database["users"])
