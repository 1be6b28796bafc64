"""Which services belong together, and in which order they are built.

A set is what is tied by needs: `orders` whose migrations name `{{tables.users.users}}` cannot be
had without one certain schema of `users`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from pytest_pgdbm.ground.errors import ConfigError, UnknownService
from pytest_pgdbm.services.service import Service
from pytest_pgdbm.sql.templates import service_for, services_named

Ties: TypeAlias = "Mapping[str, Mapping[str, str]]"
"""For each service the services that it needs, each with the reason: `declared` or `file:line`."""

Texts: TypeAlias = "Callable[[Service], Iterable[tuple[str, str]]]"
"""The SQL of a service: pairs of a label for messages (`orders/sql/002_x.sql`) and the text."""

DECLARED = "declared"


def ties(services: Mapping[str, Service], texts: Texts) -> dict[str, dict[str, str]]:
    """What each service needs, and why: its `needs=` and the services that its SQL names.

    A name in a template that is no known service is left alone: it may be a real schema. Raises
    UnknownService for a declared need that is not known.
    """
    return {name: _needs(name, services, texts) for name in services}


def _needs(name: str, services: Mapping[str, Service], texts: Texts) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for need in services[name].needs:
        reasons[_declared_need(need, name, services)] = DECLARED
    for label, sql in texts(services[name]):
        for reference in services_named(sql):
            needed = service_for(reference.service, services)
            if needed is not None:
                reasons.setdefault(needed, f"{label}:{reference.line}")
    reasons.pop(name, None)
    return reasons


def _declared_need(need: str, name: str, services: Mapping[str, Service]) -> str:
    found = service_for(need, services)
    if found is None:
        raise UnknownService(need, services, [f"needs= of service {name!r}"])
    return found


def component(name: str, ties: Ties) -> frozenset[str]:
    """All that is tied to the service `name`, in either direction and over others; itself too."""
    neighbours: dict[str, set[str]] = {service: set(needs) for service, needs in ties.items()}
    for service, needs in ties.items():
        for need in needs:
            neighbours.setdefault(need, set()).add(service)
    reached, waiting = {name}, [name]
    while waiting:
        new = neighbours.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return frozenset(reached)


def needed(names: Iterable[str], ties: Ties) -> frozenset[str]:
    """These services and all that they need, directly and over others."""
    waiting = list(names)
    reached = set(waiting)
    while waiting:
        new = set(ties.get(waiting.pop(), ())) - reached
        reached |= new
        waiting += new
    return frozenset(reached)


def build_order(component: Iterable[str], ties: Ties) -> list[str]:
    """The services of a set so that each comes after what it needs, else by name.

    Raises ConfigError, which shows the ring with its reasons, if services need each other.
    """
    members = set(component)
    open_needs = {name: members & set(ties.get(name, ())) for name in members}
    ready = [name for name, needs in open_needs.items() if not needs]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        built = heapq.heappop(ready)
        order.append(built)
        del open_needs[built]
        for name, needs in open_needs.items():
            if built in needs:
                needs.discard(built)
                if not needs:
                    heapq.heappush(ready, name)
    if open_needs:
        raise _ring_error(_ring(open_needs), ties)
    return order


def _ring(open_needs: Mapping[str, set[str]]) -> list[str]:
    """A ring among services of which each waits for another; it starts with the first by name."""
    path = [min(open_needs)]
    while (following := min(open_needs[path[-1]])) not in path:
        path.append(following)
    ring = path[path.index(following) :]
    first = ring.index(min(ring))
    return ring[first:] + ring[:first]


def _ring_error(ring: Sequence[str], ties: Ties) -> ConfigError:
    steps = zip(ring, [*ring[1:], ring[0]], strict=True)
    told = ", ".join(f"{name} needs {need} ({ties[name][need]})" for name, need in steps)
    return ConfigError(
        f"services need each other in a ring: {told}; none of them can be built first, so take one need out"
    )
