"""The two ways to have a server of one's own, told apart in one place and loaded when used."""

from __future__ import annotations

from pathlib import Path

from pytest_pgdbm.servers.base import Job, Place, Server, record

_AT = "@"


def server_for(job: Job) -> Server:
    """The server that the job asks for, not started yet."""
    if job.kind == "container":
        from pytest_pgdbm.servers.container import ContainerServer
        from pytest_pgdbm.servers.docker_address import docker_host

        # The container's name follows from the run; where it will be is all there is to note.
        record(Path(job.folder), Place("container", f"{job.run}{_AT}{docker_host()}"))
        return ContainerServer(job)
    from pytest_pgdbm.servers.embedded import EmbeddedServer

    return EmbeddedServer(job)


def take_away(place: Place) -> None:
    """Takes away what a killed keeper left at this place; nothing happens if nothing is there."""
    if place.kind == "container":
        from pytest_pgdbm.servers.docker_engine import remove_container

        run, _, host = place.at.partition(_AT)
        remove_container(run, host)
    else:
        from pytest_pgdbm.servers import leftovers

        leftovers.take_away(place.at)
