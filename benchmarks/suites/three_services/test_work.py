"""Tests of one service, of two and of three, in turn."""

from work import each_test, work


@each_test
async def test_one(users, number):
    await work(users)


@each_test
async def test_two(users, orders, number):
    await work(users)
    await work(orders)


@each_test
async def test_three(users, orders, payments, number):
    await work(users)
    await work(orders)
    await work(payments)
