"""A set is built: with a look at where its migrations reach when its content is new, and with its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from pytest_pgdbm.connections.manager import Database
from pytest_pgdbm.schemas.build import build
from pytest_pgdbm.schemas.contents import Contents
from pytest_pgdbm.schemas.plan import BuiltSet, Manner, Member, warn_of_order
from pytest_pgdbm.schemas.reach import Reach
from pytest_pgdbm.schemas.seeds import sow
from pytest_pgdbm.schemas.watched import Builder


async def construct(
    connection: asyncpg.Connection,
    built: BuiltSet,
    others: Sequence[str],
    manner: Manner,
    contents: Contents,
    databases: Mapping[str, Database],
) -> None:
    """Makes the schemas of the set, with all that is in them.

    The connection must be the role of tests. `others` are the other services that the run knows, `databases` what seeds
    that are functions get. Raises BuildError, and ReplayFailed; what was made by then is the caller's to drop.
    """
    plan, schemas = built.plan, built.schemas

    async def seed(member: Member, builder: Builder) -> None:
        await sow(builder, member.name, member.service.seeds, databases[member.name])

    first = plan.key not in contents.seen
    reach = await Reach.before(connection, plan, schemas, others) if first and manner.proof else None
    after = reach.check_file if reach else None
    known = contents.recordings.get(plan)
    made = await build(connection, plan, schemas, manner, seed=seed, after=after, recording=known)
    if reach is not None:
        await reach.check_set()
    if first:
        warn_of_order(plan)
    contents.seen.add(plan.key)
    contents.recordings.keep(plan, made)
