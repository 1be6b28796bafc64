"""What the container of a run is made like: command, environment, memory, port, label.

For every image that is made like the official one: https://hub.docker.com/_/postgres.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers.base import Job
from pytest_pgdbm.servers.docker_address import PATIENT
from pytest_pgdbm.servers.docker_engine import LABEL, connection, container_name
from pytest_pgdbm.servers.docker_errors import short
from pytest_pgdbm.servers.docker_images import image_config, image_variables
from pytest_pgdbm.servers.tuning import arguments, settings

if TYPE_CHECKING:
    import docker
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.docker_client import DockerClient

DATABASE = "postgres"
"""The database that is there from the start."""

_PORT = 5432
_MEMORY = "/var/lib/pgdbm"
# Not the folder that the image makes a volume: it moved with version 18, and the entrypoint of 18
# refuses a mount at the old one: https://github.com/docker-library/postgres/pull/1259
_PGDATA = f"{_MEMORY}/data"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def new_container(image: str, host: str) -> DockerContainer:
    """A container of the image on the daemon at `host`, for `prepare`; nothing is made there yet.

    Switches testcontainers' reaper off in this process. Raises ServerFailed if testcontainers cannot be used.
    """
    try:
        from testcontainers.core import config
        from testcontainers.core.container import DockerContainer

        mode = config.get_user_overwritten_connection_mode()
    except Exception as error:
        raise ServerFailed(
            f"testcontainers cannot be used: {short(error)}",
            "pip install --upgrade testcontainers, and check the variables TESTCONTAINERS_*",
        ) from error
    config.testcontainers_config.ryuk_disabled = True
    # testcontainers 4.9 and 4.10 read TESTCONTAINERS_CONNECTION_MODE only when asked like this.
    config.testcontainers_config.connection_mode_override = mode
    return DockerContainer(image, docker_client_kw={"timeout": PATIENT, **connection(host)})


def prepare(container: DockerContainer, job: Job, host: str) -> None:
    """Says all that the daemon will be told when it makes the container. Pulls the image if it is not there.

    Raises ServerFailed.
    """
    docker = container.get_docker_client()
    config = image_config(docker.client, container.image, host)
    container.with_name(container_name(job.run))
    container.with_command(_command(config))
    for name, value in _environment(job, image_variables(config)).items():
        container.with_env(name, value)
    container.ports = _ports(docker, host)
    container.with_kwargs(labels={LABEL: job.run}, mounts=[_memory()])


def address(container: DockerContainer, host: str) -> tuple[str, int]:
    """Where the server in the container is reached; the very address if it is published on that alone."""
    docker = container.get_docker_client()
    name, port = container.get_container_host_ip(), _PORT
    if docker.get_connection_mode().use_mapped_port:
        port = int(docker.port(container.get_wrapped_container().id, _PORT))
    if not name:  # a socket would take it for this machine
        raise RuntimeError("the container has no address in its network")
    return ("127.0.0.1" if _loopback_only(docker, host) else name), port


def _command(image: Mapping[str, Any]) -> list[str]:
    """The image's own command, which may load a library, with the settings for tests behind it."""
    major = image_variables(image).get("PG_MAJOR", "")
    tuned = settings(int(major) if major.isdecimal() else None)
    return [*(image.get("Cmd") or ["postgres"]), *arguments(tuned)]


def _environment(job: Job, image: Mapping[str, str]) -> dict[str, str]:
    """The variables of the official image: https://hub.docker.com/_/postgres."""
    return {
        "POSTGRES_USER": job.admin.user,
        "POSTGRES_PASSWORD": job.admin.password or "",
        "POSTGRES_DB": DATABASE,
        # Without it the image trusts whoever comes from the container itself over TCP.
        "POSTGRES_INITDB_ARGS": f"{image.get('POSTGRES_INITDB_ARGS', '')} --no-sync --auth-host=scram-sha-256".strip(),
        "PGDATA": _PGDATA,
    }


def _memory() -> docker.types.Mount:
    """A tmpfs for the data; the kernel lets it take half of the memory, but only what is used."""
    from docker.types import Mount

    return Mount(_MEMORY, None, type="tmpfs")


def _ports(docker: DockerClient, host: str) -> dict[str, Any]:
    """How the server's port is published: no wider than it takes to reach it."""
    if not docker.get_connection_mode().use_mapped_port:
        return {}
    return {f"{_PORT}/tcp": ("127.0.0.1",) if _loopback_only(docker, host) else None}


def _loopback_only(docker: DockerClient, host: str) -> bool:
    """Whether the daemon is on this machine, and its ports are reached on the loopback address.

    They are not within a container that was given the socket of its host's daemon.
    """
    here = host.startswith(("unix://", "npipe://"))
    by_port = docker.get_connection_mode().name == "docker_host"
    return here and by_port and docker.host() in _LOOPBACK
