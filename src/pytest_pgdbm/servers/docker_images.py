"""Images: what the Docker daemon knows of one, which it pulls if need be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.servers.docker_errors import pull_failure

if TYPE_CHECKING:
    import docker


def image_config(client: docker.DockerClient, image: str, host: str) -> Mapping[str, Any]:
    """The image's `Config`, as the daemon at `host` knows it; the image is pulled if it is not there.

    Raises ServerFailed.
    """
    from docker.errors import ImageNotFound

    try:
        try:
            found = client.images.get(image)
        except ImageNotFound:
            _pull(client, image)
            found = client.images.get(image)
    except Exception as error:
        raise pull_failure(error, image, host) from error
    return found.attrs["Config"] or {}


def image_variables(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment that the image brings, `PG_MAJOR` of the official one among it."""
    return dict(word.partition("=")[::2] for word in config.get("Env") or ())


def _pull(client: docker.DockerClient, image: str) -> None:
    """Pulls the image, and raises RuntimeError for an error that stands in the daemon's report.

    docker's own `images.pull` reads over those.
    """
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(image)
    report = client.api.pull(repository, tag=tag or "latest", stream=True, decode=True)
    errors = [event["error"] for event in report if "error" in event]
    if errors:
        raise RuntimeError(errors[-1])
