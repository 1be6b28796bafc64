"""Whatever tests do to a set, the next one gets it as it was when it was first leased, or anew."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterator

import asyncpg
import pytest
from equality import acts
from equality.acts import Act
from equality.after import used
from equality.ground import CLEAN_AT_RELEASE, execute
from equality.grounds import ALL, SIMPLE, Yard, server_of, yard_on
from equality.vocabulary import DEPOT, SHOP, VAULT, Table
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from pg_dump import dumps_differ

PROGRAMS = int(os.environ.get("EQUALITY_PROGRAMS", "50"))
"""How many tests' programs are played for each role, at least: random ones if this is said, else always the same."""

PROGRAMS_A_RUN = 2
"""A run of the machine gives the set back more often than that in the mean."""

CONNECTIONS = st.integers(0, 2)

_SCHEMA = re.compile(r"pgdbm_[0-9a-f]+_[a-z0-9]+_\d+_")

_WHOM = {"any": "anybody", "ordinary": "an ordinary role", "never": "nobody"}


class Player:
    """Plays what tests do, and gives the set back. Nothing is in doubt afterwards, or it raises."""

    def __init__(self, yard: Yard, tables: list[Table], *, own: bool) -> None:
        self.yard = yard
        self.ground = yard.ground
        self.tables = tables
        self.own = own
        self.costs: set[str] = set()
        self.given_back = False
        self.tally: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.first_use = yard.do(self._first_use())

    async def _first_use(self) -> dict[str, list[str]]:
        await self.ground.restore()
        return await used(self.ground, self.ground.connections[0])

    def play(self, connection: int, act: Act) -> None:
        """What one connection does. That it fails is as good as that it works."""
        note(f"{connection}: {act!r}")
        self.given_back = False
        said = self.yard.do(self._play(self.ground.connections[connection], act))
        if not said or "concurrently" in act.sql:  # which leaves something behind when it fails
            self.costs.add(act.cost)

    async def _play(self, connection: asyncpg.Connection, act: Act) -> str:
        if act.rows is None:
            return await execute(connection, self.ground.sql(act.sql))
        try:
            await self._copy(connection, act)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return str(error)
        return ""

    async def _copy(self, connection: asyncpg.Connection, act: Act) -> None:
        schema, table, column = act.into
        source = io.BytesIO("".join(f"{row}\n" for row in act.rows or ()).encode())
        await connection.copy_to_table(table, schema_name=self.ground.schemas[schema], columns=[column], source=source)

    def give_back(self, *, thoroughly: bool) -> None:
        """The end of a test."""
        self.yard.do(self._give_back(thoroughly))

    async def _give_back(self, thoroughly: bool) -> None:
        if await self._given_back() and thoroughly:
            assert dumps_differ(*await self.ground.dumps()) == []
            use = await used(self.ground, self.ground.connections[0])
            assert {what: (self.first_use[what], use[what]) for what in use if use[what] != self.first_use[what]} == {}
            self.costs.add("ordinary")
            self.given_back = False
            await self._given_back()

    async def _given_back(self) -> bool:
        for connection in self.ground.connections:
            await execute(connection, CLEAN_AT_RELEASE)
        why = await self.ground.recycle()
        most = next(cost for cost in ("any", "ordinary", "never") if cost in self.costs or cost == "never")
        self.tally[f"{'built anew' if why else 'recycled'} after what costs {_WHOM[most]} a rebuild"] += 1
        if why:
            self.reasons[_SCHEMA.sub("", why)] += 1
            assert self._may_be_dropped(), f"it had to be dropped: {why}"
            await self.ground.restore()
        else:
            await self.ground.clean()
            assert await self.ground.differences() == []
        self.costs = set()
        self.given_back = True
        return not why

    def _may_be_dropped(self) -> bool:
        return "any" in self.costs or ("ordinary" in self.costs and not self.own)

    def told(self) -> list[tuple[str, int]]:
        """How often sets were given back after what, and why they had to be dropped."""
        return sorted(self.tally.items()) + self.reasons.most_common(20)

    def begin(self) -> None:
        """Before the first test: in the set that those before it have left, if all is well; it has seen many then."""
        self.costs = set()
        if not self.given_back:
            self.yard.do(self.ground.restore())
            self.given_back = True


def machine_of(player: Player) -> type[RuleBasedStateMachine]:
    """The machine that thinks up what is played."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.sound = True

        @initialize()
        def begin(self) -> None:
            player.begin()

        @rule(connection=CONNECTIONS, act=acts.writes(player.tables))
        def write(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, some=st.lists(acts.writes(player.tables), min_size=1, max_size=5))
        def write_much(self, connection: int, some: list[Act]) -> None:
            for act in some:
                player.play(connection, act)

        @rule(
            connection=CONNECTIONS,
            act=acts.writes(player.tables),
            end=st.sampled_from(["commit", "rollback", "savepoint a; select 1 / 0", "prepare transaction 'half'"]),
        )
        def write_in_transaction(self, connection: int, act: Act, end: str) -> None:
            for each in (Act("begin"), act, Act(end)):
                player.play(connection, each)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.CONTROL))
        def control(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=acts.sequences())
        def count(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.FAILURES))
        def fail(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.SESSION))
        def change_session(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.MAINTENANCE))
        def maintain(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.VIEWS))
        def refresh(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.HARMLESS))
        def change_nothing(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        @rule(connection=CONNECTIONS, act=st.sampled_from(acts.DDL))
        def change_structure(self, connection: int, act: Act) -> None:
            player.play(connection, act)

        # Not whether anything came of it, which depends on who was faster.
        @precondition(lambda self: not player.given_back)
        @rule()
        def give_back(self) -> None:
            self.sound = False  # unless all goes well
            player.give_back(thoroughly=False)
            self.sound = True

        def teardown(self) -> None:
            if self.sound:
                player.give_back(thoroughly=True)

    return Machine


@pytest.fixture(scope="module", params=[True, False], ids=["superuser", "ordinary role"])
def player(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    own = request.param
    recipe, tables = (ALL, [*DEPOT, *SHOP, *VAULT]) if own else (SIMPLE, [*DEPOT, *SHOP])
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), recipe, own=own) as yard:
        yield Player(yard, tables, own=own)


def test_what_is_recycled_is_what_it_was(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    thought_up = settings(
        max_examples=PROGRAMS // PROGRAMS_A_RUN,
        stateful_step_count=25,
        deadline=None,
        derandomize="EQUALITY_PROGRAMS" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(machine_of(player), settings=thought_up)
    assert sum(player.tally.values()) >= PROGRAMS
    with capsys.disabled():
        print(*(f"\n{number:5d} {what}" for what, number in player.told()), end="")
