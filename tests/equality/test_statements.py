"""No statement that leaves a set otherwise than it was goes unnoticed, and what does not, costs no rebuild."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import asyncpg
import pytest
from equality.ground import CLEAN_AT_RELEASE, Ground, Recipe, execute
from equality.grounds import Yard, server_of, yard_on
from pgdbm import AsyncMigrationManager
from schemas import statements
from schemas.statements import Statement

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.manager import Term

OTHER = "other_in_equality"
_TWO = {"s": {"001.sql": "select 1"}, "t": {"001.sql": "select '{{tables.s.schema_migrations}}'"}}
_SCHEMA = re.compile(r"(?<=schema )(?P<options>if not exists |concurrently )?(?P<first>[st])\b(?P<second>, t\b)?")

# An ordinary role cannot put rows back past the triggers of their table.
_TRIGGER = re.compile(r"a trigger would fire if they were put back$")


def for_set(sql: str, database: str = "") -> str:
    """The statement with `<s>` and `<t>` for the schemas, and for the other role one of these tests' own."""
    sql = _SCHEMA.sub(
        lambda found: f"{found['options'] or ''}<{found['first']}>{', <t>' if found['second'] else ''}", sql
    )
    sql = re.sub(r"\b([st])\.(?=\w)", r"<\1>.", sql).replace("'s'::regnamespace", "'<s>'::regnamespace")
    sql = sql.replace(" to owner", " to <role>")
    return re.sub(r"\bother\b", OTHER, sql).replace("fingerprinted", database)


SETUP = Recipe(
    _TWO,
    "s",
    then=(
        (True, "grant create on schema public to <role>"),
        *(
            (statement.superuser, for_set(statement.sql))
            for statement in statements.SETUP
            if not statement.sql.startswith("create schema")
        ),
    ),
)


@pytest.fixture(scope="module", params=[True, False], ids=["superuser", "ordinary role"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A set of two schemas that hold something of every kind."""
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), SETUP, own=request.param, other=OTHER) as yard:
        yield yard


class Trial:
    """What became of each statement of a table, each on a set that was just leased."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.ground = yard.ground
        self.refused: list[str] = []
        self.dropped: dict[str, str] = {}
        self.otherwise: dict[str, list[str]] = {}

    def of(self, table: Sequence[Statement], *, afresh: bool) -> Trial:
        """Tries them all. `afresh` has the set anew after each that the server did not refuse."""
        for statement in table:
            if statement.since <= self.ground.version:
                self.yard.do(self._try(statement, afresh))
        return self

    async def _try(self, statement: Statement, afresh: bool) -> None:
        ground, sql = self.ground, statement.sql
        if refusal := await self._run(statement):
            self.refused.append(f"{sql}: {refusal}")
        why = await ground.recycle()
        if why:
            self.dropped[sql] = why
        else:
            await ground.clean()
            if told := await ground.differences():
                self.otherwise[sql] = told
        if why or sql in self.otherwise or (afresh and not refusal):
            await ground.restore(surely=False)

    async def _run(self, statement: Statement) -> str:
        sql = self.ground.sql(for_set(statement.sql, self.ground.database))
        connection = await self._superuser() if statement.superuser else self.ground.connections[0]
        refusal = ""
        for part in sql.split("; ") if statement.alone or "concurrently" in sql else [sql]:
            refusal = refusal or await execute(connection, part)
        await execute(connection, CLEAN_AT_RELEASE)
        if statement.superuser:
            await connection.close()
        return refusal

    async def _superuser(self) -> asyncpg.Connection:
        server = self.ground.workshop.own
        connection = await asyncpg.connect(login.dsn(server, self.ground.database, server.admin))
        await connection.execute(f"set search_path = {self.ground.path}")
        return connection


def test_no_change_goes_unnoticed(yard: Yard) -> None:
    # Each statement costs a new database. That both roles notice all of them, test_fingerprint shows for less.
    share = 1 if "EQUALITY_PROGRAMS" in os.environ else 2
    trial = Trial(yard).of(statements.CHANGES[yard.ground.own % share :: share], afresh=True)
    assert trial.otherwise == {}
    assert len(trial.dropped) > 200 // share


def test_what_is_harmless_costs_no_rebuild_and_leaves_nothing(yard: Yard) -> None:
    trial = Trial(yard).of(statements.HARMLESS, afresh=False)
    assert trial.otherwise == {}
    assert {sql: why for sql, why in trial.dropped.items() if yard.ground.own or not _TRIGGER.search(why)} == {}
    assert len(statements.HARMLESS) - len(trial.refused) - len(trial.dropped) > 80


def test_what_lies_elsewhere_costs_no_rebuild(yard: Yard) -> None:
    trial = Trial(yard).of(statements.ELSEWHERE, afresh=True)
    assert trial.otherwise == {}
    assert trial.dropped == {}


def test_migrations_that_are_run_again_cost_no_rebuild(yard: Yard) -> None:
    async def go(ground: Ground) -> str:
        managers = ground.home.managers(ground.built, Term("the test"), ground.schemas)
        for member in ground.built.plan.members:
            manager = managers[member.name]
            result = await AsyncMigrationManager(manager, str(member.service.migrations)).apply_pending_migrations()
            assert result["status"] == "up_to_date"
        why = await ground.recycle()
        assert await ground.differences() == []
        return why

    assert yard.do(go(yard.ground)) == ""
