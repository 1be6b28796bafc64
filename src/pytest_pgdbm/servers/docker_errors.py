"""What an error of the Docker daemon means for the user, and what mends it."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import masked
from pytest_pgdbm.servers.docker_address import PATIENT, usual_host

_START_IT = "start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to where it listens"


def unreachable(error: Exception, host: str, seconds: float) -> ServerFailed:
    """What to tell the user of an error on the way to the daemon at `host`, which was given `seconds` to answer."""
    where = masked(host)
    if _caused_by(error, PermissionError):
        return ServerFailed(
            f"this user may not use the Docker daemon at {where}: permission denied",
            "sudo usermod -aG docker $USER, then log in anew",
        )
    if _caused_by(error, FileNotFoundError) and host.startswith("unix:"):
        return _no_socket(where, host)
    if _caused_by(error, ConnectionRefusedError):
        return ServerFailed(f"the Docker daemon does not run: nothing listens at {where}", _START_IT)
    if _caused_by(error, socket.gaierror):
        return ServerFailed(f"the host name in {where} is not known", "correct DOCKER_HOST")
    if _caused_by(error, TimeoutError) or "timed out" in str(error):
        return ServerFailed(f"the Docker daemon at {where} did not answer within {seconds:g} s", _START_IT)
    return ServerFailed(
        f"the Docker daemon at {where} cannot be used: {short(error)}",
        "see that `docker version` works, and correct DOCKER_HOST",
    )


def start_failure(error: Exception, image: str, host: str) -> ServerFailed:
    """What to tell the user of an error of the daemon at `host` while it made a container of this image."""
    return _explained(error, _STARTING, image, host)


def pull_failure(error: Exception, image: str, host: str) -> ServerFailed:
    """What to tell the user of an error of the daemon at `host` while it looked for or pulled this image."""
    return _explained(error, _PULLING, image, host)


def short(error: Exception) -> str:
    """What the daemon said, or else the error's own text, on one line and without passwords."""
    text = getattr(error, "explanation", None) or str(error) or type(error).__name__
    return masked(" ".join(str(text).split()))


def _no_socket(where: str, host: str) -> ServerFailed:
    if host == usual_host() and shutil.which("docker") is None:
        return ServerFailed(
            f"Docker is not installed: there is no `docker` command, and nothing at {where}",
            "install Docker: https://docs.docker.com/engine/install/",
        )
    return ServerFailed(f"the Docker daemon does not run: there is nothing at {where}", _START_IT)


class _Sign(NamedTuple):
    """Words in an error of the daemon, and what to say then of `{image}` and `{text}`."""

    words: str
    why: str
    remedy: str

    def failure(self, image: str, text: str) -> ServerFailed:
        return ServerFailed(self.why.format(image=image, text=text), self.remedy.format(image=image))


_PULLING = (
    _Sign(
        r"toomanyrequests|too many requests|\b429\b|rate limit",
        "the registry allows no more pulls of {image} for now (429, too many requests): {text}",
        "docker login (the limit of an account is higher), or docker pull {image} later, or name"
        " the same image in another registry with --pgdbm-image",
    ),
    _Sign(
        r"invalid reference format|invalid repository",
        "{image} cannot be the name of an image: {text}",
        "correct --pgdbm-image; examples: postgres:17, registry.example/team/postgres:17",
    ),
    _Sign(
        r"no such host|server misbehaving|connection refused|timeout|deadline exceeded"
        r"|unreachable|no route to host",
        "the image {image} is not on this machine, and its registry cannot be reached: {text}",
        "docker pull {image} while there is a network, or name an image that `docker image ls`"
        " shows with --pgdbm-image",
    ),
    _Sign(
        r"denied|unauthorized|authentication required|manifest unknown|not found|does not exist",
        "there is no image {image} that this user may pull: {text}",
        "correct --pgdbm-image, or docker login if its registry is private",
    ),
    _Sign(
        r"",
        "the image {image} could not be pulled: {text}",
        "see that `docker pull {image}` works, or name another image with --pgdbm-image",
    ),
)

_STARTING = (
    _Sign(
        r"external connectivity|already allocated|address already in use|iptables",
        "Docker could not publish the port of a container of image {image}: {text}",
        "see that `docker run --rm -p 127.0.0.1::5432 {image} true` works; to restart Docker"
        " brings its firewall rules back",
    ),
    _Sign(
        r"container name .* is already in use",
        "a container that the plugin did not make has the name of this run: {text}",
        "run the tests again: the next run has another name",
    ),
    _Sign(
        r"runtime create failed|executable file not found|exec format error",
        "the image {image} cannot be run here: {text}",
        "name an image for this processor that is made like the official `postgres` with --pgdbm-image",
    ),
    _Sign(
        r"",
        "a container of image {image} could not be started: {text}",
        "see that `docker run --rm -e POSTGRES_PASSWORD=secret {image}` works",
    ),
)


def _explained(error: Exception, signs: Sequence[_Sign], image: str, host: str) -> ServerFailed:
    gone = any(_caused_by(error, kind) for kind in (FileNotFoundError, ConnectionRefusedError))
    if gone or "Read timed out" in str(error):
        return unreachable(error, host, PATIENT)
    text = short(error)
    sign = next(sign for sign in signs if re.search(sign.words, text, re.IGNORECASE))
    return sign.failure(image, text)


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it; requests and urllib3 keep some among the arguments."""
    todo, seen = [error], set[int]()
    while todo:
        cause = todo.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        linked = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        todo += [other for other in linked if isinstance(other, BaseException)]
