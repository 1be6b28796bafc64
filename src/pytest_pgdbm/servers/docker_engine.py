"""Reaching the Docker daemon, and taking a run's container away, found by its name and label."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.ground.names import PREFIX
from pytest_pgdbm.servers.docker_address import PATIENT, QUICK, docker_host
from pytest_pgdbm.servers.docker_errors import short, unreachable

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

LABEL = "pytest-pgdbm.run"
"""The label of every container of the plugin; its value is the run's id."""

IN_FLIGHT = 0.5
"""How many seconds after its client's death the daemon may still be making a container."""


def container_name(run: str) -> str:
    """The name of the container of the run with this id; nothing else has it."""
    return f"{PREFIX}-{run}"


def docker_reachable(timeout: float = 2.0) -> str | None:
    """None if a Docker daemon answers within `timeout` seconds, otherwise why not, on one line.

    Does not import testcontainers.
    """
    try:
        connected(docker_host(), timeout).close()
    except ServerFailed as failure:
        return failure.why
    return None


def connected(host: str, timeout: float) -> docker.DockerClient:
    """A client of the Docker daemon, which has answered within `timeout` seconds. Raises ServerFailed."""
    try:
        import docker

        _knock(host, timeout)
        # Making the client asks the daemon for its version.
        return docker.from_env(timeout=timeout, version="auto", **connection(host))
    except Exception as error:
        raise unreachable(error, host, timeout) from error


def connection(host: str) -> dict[str, Any]:
    """The keywords of `docker.from_env` that lead to this host; over ssh with the user's `ssh`."""
    environment = {**os.environ, "DOCKER_HOST": host}
    return {"environment": environment, "use_ssh_client": host.startswith("ssh://")}


def remove_container(run: str, host: str | None = None, *, grace: float = IN_FLIGHT) -> None:
    """Removes what a dead process made, or was making, for the run: its container and volumes.

    `host` is where its daemon is, `docker_host()` by default. If no container is there, one is
    waited for for `grace` seconds, since the daemon may be making it still. Only a container that has
    both the name and the label of this run is touched. Raises ServerFailed if the daemon cannot be
    asked.
    """
    host = host or docker_host()
    client = connected(host, QUICK)
    client.api.timeout = PATIENT
    try:
        _remove(client, run, grace)
    except Exception as error:
        name = container_name(run)
        raise ServerFailed(
            f"the container {name} at {masked(host)} could not be removed: {short(error)}",
            f"docker rm --force --volumes {name}",
        ) from error
    finally:
        client.close()


def _knock(host: str, timeout: float) -> None:
    """Raises OSError if nobody listens at a Unix socket, where docker would leave its own open."""
    if not host.startswith("unix:"):
        return
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout)
        link.connect("/" + host.removeprefix("unix:").lstrip("/"))


def _remove(client: docker.DockerClient, run: str, grace: float) -> None:
    """Removes the container of the run; one that is not there is waited for, `grace` seconds."""
    begun = time.monotonic()
    while True:
        container = _ours(client, run)
        waited = time.monotonic() - begun
        if container is None and waited >= grace:
            return
        if container is not None:
            if _removed(container):
                return
            if waited > PATIENT:
                raise TimeoutError("the daemon says that its removal is in progress")
        time.sleep(0.02)


def _removed(container: Container) -> bool:
    """Removes it; False if somebody else is at it already."""
    from docker.errors import APIError, NotFound

    try:
        container.remove(force=True, v=True)
    except NotFound:
        return True
    except APIError as error:
        if error.status_code == 409:
            return False
        raise
    return True


def _ours(client: docker.DockerClient, run: str) -> Container | None:
    """The container of the run, if there is one and the plugin made it."""
    from docker.errors import NotFound

    try:
        container = client.containers.get(container_name(run))
    except NotFound:
        return None
    ours = container.name == container_name(run) and container.labels.get(LABEL) == run
    return container if ours else None
