"""The server's owner: one small process per run and host, and how the processes of a run meet.

The keeper starts the server, lives while any process of the run lives, and then takes everything away:
the server, its data, the run's folder. It does not know what Postgres is; a `Job` tells it which server
to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_pgdbm.keeper.rendezvous import Holding, join, leave_run

__all__ = ["Holding", "join", "leave_run"]


def __getattr__(name: str) -> Any:
    # The keeper's own process imports this package too, and needs nothing of what is here.
    if name not in __all__:
        raise AttributeError(name)
    from pytest_pgdbm.keeper import rendezvous

    return getattr(rendezvous, name)
