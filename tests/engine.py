"""The container engine that tests use, and the image of a Postgres server on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound, NotFound

from pytest_pgdbm.servers.docker_address import docker_host
from pytest_pgdbm.servers.docker_engine import docker_reachable

IMAGE = os.environ.get("PGDBM_IMAGE", "postgres")


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """A client of the engine; skips the test, with the reason, if there is none or no image on it."""
    if why := docker_reachable():
        pytest.skip(why)
    with contextlib.closing(docker.from_env(environment={**os.environ, "DOCKER_HOST": docker_host()})) as client:
        try:
            client.images.get(IMAGE)
        except ImageNotFound:
            pytest.skip(f"the image {IMAGE} is not there (PGDBM_IMAGE names another)")
        yield client


def is_there(client: Any, name: str) -> bool:
    """Whether the engine has a container of this name."""
    try:
        client.containers.get(name)
    except NotFound:
        return False
    return True
