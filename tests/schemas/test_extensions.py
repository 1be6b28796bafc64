"""Extensions are there before the first migration, whoever may make them and however many ask at once."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket

import pytest
from databases import connected
from workshop import Workshop

from pytest_pgdbm import BuildError
from pytest_pgdbm.schemas import extensions

USES = "create extension citext;\ncreate table {{tables.t}} (name public.citext);"


async def installed(workshop: Workshop) -> dict[str, str]:
    async with connected(workshop.url) as connection:
        rows = await connection.fetch("select extname, extnamespace::regnamespace::text as at from pg_extension")
        return {row["extname"]: row["at"] for row in rows if row["extname"] != "plpgsql"}


@pytest.mark.parametrize("path", [None, "pg_catalog, public", "none", "$service, pg_catalog"])
@pytest.mark.parametrize("own", [True, False], ids=["own server", "url"])
def test_a_migration_may_create_one_for_each_test(workshop: Workshop, path: str | None, own: bool) -> None:
    async def go() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", USES)})
        async with workshop.home(own=own, path=path) as home:
            for _ in range(2):
                assert await home.drop([await home.build(asked.plan, ())]) == ([], [])
        assert await installed(workshop) == {"citext": "public"}

    asyncio.run(go())


def test_one_that_exists_stays_where_it_is(workshop: Workshop) -> None:
    async def go() -> None:
        async with connected(workshop.url) as connection:
            await connection.execute("create schema extensions; create extension citext schema extensions")
        sql = "create extension if not exists citext; create table {{tables.t}} (name extensions.citext);"
        service = workshop.service("users", sql, extensions=["citext", "hstore"])
        async with workshop.built("users", {"users": service}) as (home, built):
            assert await home.drop([built]) == ([], [])
        assert await installed(workshop) == {"citext": "extensions", "hstore": "public"}

    asyncio.run(go())


def test_those_of_the_settings_and_what_they_need_are_made(workshop: Workshop) -> None:
    async def go() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", "select 1")})
        async with workshop.home(own=True, extensions=["earthdistance"]) as home:
            await home.build(asked.plan, ())
        assert await installed(workshop) == {"cube": "public", "earthdistance": "public"}

    asyncio.run(go())


def test_many_may_make_one_at_once(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.superuser() as one, workshop.superuser() as two, connected(workshop.url) as three:
            everyone = (one, two, three)
            await asyncio.gather(
                *(extensions.make(each, ["citext", "hstore"], workshop.own, workshop.run.id) for each in everyone)
            )
        assert await installed(workshop) == {"citext": "public", "hstore": "public"}

    asyncio.run(go())


def test_one_that_an_ordinary_role_may_not_make_is_told_with_what_mends_it(workshop: Workshop) -> None:
    async def go() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", "create extension pageinspect")})
        async with workshop.home() as home:
            with pytest.raises(BuildError) as caught:
                await home.build(asked.plan, ())
        assert str(caught.value) == (
            "extension 'pageinspect' is needed, and this role may not make it"
            ' (permission denied to create extension "pageinspect")\n'
            '  to mend it: have a superuser run CREATE EXTENSION "pageinspect" SCHEMA public in this database'
        )
        async with workshop.superuser() as superuser:
            await superuser.execute("create extension pageinspect schema public")
        async with workshop.home() as home:
            assert await home.drop([await home.build(asked.plan, ())]) == ([], [])
        assert await workshop.schemas() == []

    asyncio.run(go())


def test_one_that_cannot_be_made_is_told_in_the_servers_words(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.superuser() as superuser:
            await superuser.execute("drop schema public")
            with pytest.raises(BuildError) as caught:
                await extensions.make(superuser, ["citext"], workshop.own, workshop.run.id)
        assert str(caught.value) == (
            "extension 'citext' is needed, and could not be made\n  the server says: schema \"public\" does not exist"
        )

    asyncio.run(go())


def test_one_that_the_server_does_not_have_is_told_with_the_ways_out(workshop: Workshop) -> None:
    async def go() -> None:
        asked = workshop.ask("users", {"users": workshop.service("users", "create extension no_such_thing")})
        async with workshop.home(own=True) as home:
            with pytest.raises(BuildError) as caught:
                await home.build(asked.plan, ())
        own = workshop.own
        assert str(caught.value) == (
            "extension 'no_such_thing' is not available: looked for it on the server"
            f" ({own.kind}, PostgreSQL {own.version}, {own.sharedir}/extension)\n"
            "  to mend it: use a PostgreSQL that has it: a system package with contrib (taken if pgdbm_extensions names"
            " the extension, or by --pgdbm-server-bin=/usr/lib/postgresql/<version>/bin), an image (--pgdbm-server="
            "container --pgdbm-image=…), or a server of yours (--pgdbm-url)"
        )
        async with workshop.home() as home:
            with pytest.raises(BuildError) as caught:
                await home.build(asked.plan, ())
        assert str(caught.value) == (
            "extension 'no_such_thing' is not available: looked for it on the server"
            f" (url, PostgreSQL {own.version})\n"
            "  to mend it: install the extension on that server (its packages are often called postgresql-contrib or"
            " …-no_such_thing)"
        )

    asyncio.run(go())


def test_without_a_folder_to_name_the_server_is_named(workshop: Workshop) -> None:
    async def go() -> None:
        container = dataclasses.replace(workshop.own, kind="container", sharedir=None)
        async with workshop.superuser() as superuser:
            with pytest.raises(BuildError, match=r"on the server \(container, PostgreSQL [\d.]+\)\n"):
                await extensions.make(superuser, ["no_such_thing"], container, workshop.run.id)

    asyncio.run(go())


def test_those_made_at_a_url_keep_their_description_and_say_who_made_them(workshop: Workshop) -> None:
    async def go() -> None:
        async with workshop.superuser() as connection:
            await connection.execute("create extension hstore")
            endpoint = await workshop.by_url(workshop.url)
            await extensions.make(connection, ["earthdistance", "hstore"], endpoint, workshop.run.id)
            made = await extensions.find_made(connection)
            assert [each.name for each in made] == ["cube", "earthdistance"]
            origin = f"run {workshop.run.id}, process {os.getpid()} on {socket.gethostname()}"
            assert {each.origin for each in made} == {origin}
            said = await connection.fetchval(
                "select obj_description(oid, 'pg_extension') from pg_extension where extname = 'earthdistance'"
            )
            own = "calculate great-circle distances on the surface of the Earth"
            assert said == f"{own}; made by pytest-pgdbm, {origin}"
            await connection.execute("comment on extension cube is 'mine; made by pytest-pgdbm'")
            assert [each.name for each in await extensions.find_made(connection)] == ["earthdistance"]

    asyncio.run(go())
