"""The tests of equality see by themselves whatever could be otherwise, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from equality.after import used
from equality.ground import Ground, execute
from equality.grounds import ALL, SIMPLE, Yard, server_of, yard_on
from equality.stand_ins import ByCopy, Careless
from equality.test_machine import Player, machine_of
from equality.test_statements import OTHER, SETUP, for_set
from equality.vocabulary import DEPOT, SHOP
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from pg_dump import dumps_differ
from schemas import statements


@pytest.fixture(scope="module")
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), ALL, own=True, engine=ByCopy) as yard:
        yield yard


OTHERWISE = {
    "update <depot>.readings set value = value where id = 5": "rows of depot.readings: another order of the same",
    "delete from <shop>.eggs where id = 1": "rows of shop.eggs: 2 before, 1 now",
    "update <depot>.odd_values set fixed = 1.5001 where fixed = 1.5": "rows of depot.odd_values: 4 before, 4 now",
    "update <depot>.odd_values set jb = jb, j = '{}' where j is not null": "rows of depot.odd_values: 4 before, 4 now",
    "insert into <depot>.nothing default values": "rows of depot.nothing: 1 before, 2 now",
    "insert into <depot>.schema_migrations (filename, checksum) values ('x', 'y')": "rows of depot.schema_migrations",
    "insert into <depot>.items (code) values ('x'); delete from <depot>.items": "pages of depot.items: (0, False)",
    "cluster <depot>.clustered": "rows of depot.clustered: another order of the same 30",
    "select nextval('<depot>.turns')": "sequence depot.turns: (1, 0, False) before, (1, 4, True) now",
    "select setval('<depot>.turns', 1, true)": "sequence depot.turns: (1, 0, False) before, (1, 0, True) now",
    "select setval('<depot>.set_back', 8, false)": "sequence depot.set_back: (7, 0, False) before, (8, 0, False) now",
    "refresh materialized view <depot>.stale": "rows of depot.stale: 7 before, 8 now",
    "refresh materialized view <depot>.totals with no data": "gone: pg_class {",
    "alter table <shop>.watched disable trigger all": "gone: pg_trigger {",
    "alter index <depot>.items_tags set (fastupdate = off)": "gone: pg_class {",
    "grant select (note) on <depot>.items to pg_monitor": "gone: pg_attribute {",
    "comment on trigger late on <shop>.orders is null": "gone: pg_description {",
    "create view public.over_it as select id from <depot>.items": "new: pg_depend {",
    "alter type <depot>.mood rename value 'sad' to 'low'": "gone: pg_enum {",
    "create statistics <depot>.more on id, note from <depot>.items": "new: pg_depend {",
    "alter table <depot>.scans set (toast.autovacuum_enabled = false)": "gone: pg_class {",
    "drop schema <vault> cascade": "rows of vault.unseen: gone",
}


async def _told(ground: Ground, statement: str) -> list[str]:
    await ground.superuser.execute(ground.sql(statement))
    try:
        return await ground.differences()
    finally:
        await ground.restore()


@pytest.mark.parametrize("statement", OTHERWISE)
def test_what_is_otherwise_is_told(yard: Yard, statement: str) -> None:
    told = yard.do(_told(yard.ground, statement))
    assert any(line.startswith(OTHERWISE[statement]) for line in told), told


NOT_OTHERWISE = [
    "vacuum full <depot>.scans; reindex table <depot>.items",
    "create index gone on <depot>.items (note); drop index <depot>.gone",
    "drop index <depot>.readings_taken; create index readings_taken on <depot>.readings (taken)",
    "grant update on <depot>.keyless to public; revoke update on <depot>.keyless from public",
    "alter table <shop>.watched disable trigger of_column; alter table <shop>.watched enable trigger of_column",
    "create table public.elsewhere (id int); create function public.f() returns int language sql as 'select 1'",
    "refresh materialized view <depot>.totals",
]


@pytest.mark.parametrize("statement", NOT_OTHERWISE)
def test_what_is_the_same_is_not_told(yard: Yard, statement: str) -> None:
    async def go() -> list[str]:
        for part in statement.split("; "):
            await yard.ground.superuser.execute(yard.ground.sql(part))
        told = await yard.ground.differences()
        await yard.ground.restore()
        return told

    assert yard.do(go()) == []


def test_a_dump_tells_what_a_dump_holds(yard: Yard) -> None:
    async def go() -> list[str]:
        await yard.ground.superuser.execute(yard.ground.sql("comment on view <depot>.stocked is 'less'"))
        told = dumps_differ(*await yard.ground.dumps())
        await yard.ground.restore()
        return told

    told = yard.do(go())
    assert "-COMMENT ON VIEW <depot>.stocked IS 'what can be had';" in told
    assert "+COMMENT ON VIEW <depot>.stocked IS 'less';" in told


def test_rows_come_to_lie_elsewhere_where_others_were_deleted(yard: Yard) -> None:
    """What makes it necessary to look at a set while it is used."""

    async def go() -> set[str]:
        ground = yard.ground
        first = await used(ground, ground.connections[0])
        await ground.restore()
        again = await used(ground, ground.connections[0])
        await ground.restore()
        assert first == again
        await ground.superuser.execute(ground.sql("delete from <depot>.suppliers where id = 5002"))
        await ground.superuser.execute("vacuum (truncate off)")
        unlike = await used(ground, ground.connections[0])
        await ground.restore()
        return {what for what in first if first[what] != unlike[what]}

    assert yard.do(go()) >= {"depot.suppliers"}


SAME_BY_NAME = [
    # Two sequences that are alike.
    "alter sequence sq rename to sq3; alter sequence sq2 rename to sq; alter sequence sq3 rename to sq2",
]


async def _unseen(ground: Ground) -> list[str]:
    unseen, connection = [], ground.superuser
    for statement in statements.CHANGES:
        if statement.alone or statement.since > ground.version:
            continue
        role = "reset role" if statement.superuser else "set local role <role>"
        sql = f"begin; {role}; set local search_path = {ground.path}; {for_set(statement.sql)}"
        if not await execute(connection, ground.sql(sql)):
            await connection.execute("reset role; set local search_path = pg_catalog")
            if not await ground.differences():
                unseen.append(statement.sql)
        await connection.execute("rollback")
    return unseen


def test_every_change_of_the_table_is_told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ground")
    with yard_on(server_of(request), folder, SETUP, own=True, engine=ByCopy, other=OTHER) as yard:
        assert yard.do(_unseen(yard.ground)) == SAME_BY_NAME


def _play(player: Player, examples: int) -> None:
    machine = machine_of(player)
    phases = [Phase.generate]
    how = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=how)


def test_the_machine_finds_nothing_wrong_with_a_copy(yard: Yard) -> None:
    _play(Player(yard, [*DEPOT, *SHOP], own=True), 5)


def test_the_machine_finds_what_is_wrong_with_careless_deletes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ground")
    with yard_on(server_of(request), folder, SIMPLE, own=True, engine=Careless) as yard, pytest.raises(AssertionError):
        _play(Player(yard, [*DEPOT, *SHOP], own=True), 20)
