"""A Postgres server in a container: made with testcontainers, owned by the keeper.

Works with every image that is made like the official one: https://hub.docker.com/_/postgres. The
run's id makes the container's name, so whoever knows the run can remove what a killed process made.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import HIDDEN, masked
from pytest_pgdbm.ground.names import PREFIX
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.tuning import arguments, settings

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.docker_client import DockerClient

DEFAULT_IMAGE = "postgres"
DATABASE = "postgres"
"""The database that is there from the start."""

LABEL = "pytest-pgdbm.run"
"""The label of every container of the plugin; its value is the run's id."""

_PORT = 5432
_MEMORY = "/var/lib/pgdbm"
# Not the folder that the image makes a volume: it moved with version 18, and the entrypoint of 18
# refuses a mount at the old one: https://github.com/docker-library/postgres/pull/1259
_PGDATA = f"{_MEMORY}/data"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOG_LINES = 15
_QUICK = 5.0
"""How many seconds the daemon may take for an answer."""
_PATIENT = 60.0
"""How many seconds the daemon may take to make or remove a container on a busy machine."""
_IN_FLIGHT = 0.5
"""How many seconds after its client's death the daemon may still be making a container."""


def container_name(run: str) -> str:
    """The name of the container of the run with this id; nothing else has it."""
    return f"{PREFIX}-{run}"


def docker_host() -> str:
    """Where the Docker daemon is, as a URL, looked up in the order in which testcontainers does.

    That is `tc.host` in `~/.testcontainers.properties`, `DOCKER_HOST`, the current context of the
    `docker` command, and the usual socket.
    """
    named = _host_in_properties() or os.environ.get("DOCKER_HOST")
    return named or _host_of_context() or _usual_host()


def docker_reachable(timeout: float = 2.0) -> str | None:
    """None if a Docker daemon answers within `timeout` seconds, otherwise why not, on one line.

    Does not import testcontainers.
    """
    try:
        _connected(docker_host(), timeout).close()
    except ServerFailed as failure:
        return failure.why
    return None


def remove_container(run: str, host: str | None = None) -> None:
    """Removes what a dead process made, or was making, for the run: its container and volumes.

    `host` is where its daemon is, `docker_host()` by default. If no container is there, half a
    second is waited for one, since the daemon may be making it still. Only a container that has
    both the name and the label of this run is touched. Raises ServerFailed if the daemon cannot be
    asked.
    """
    _take_away(run, host or docker_host(), _IN_FLIGHT)


class ContainerServer:
    """A server in a container of its own, its data in memory, tuned for tests; see `Server`.

    testcontainers' reaper is switched off in this process: the keeper does its work.
    """

    def __init__(self, job: Job, *, patience: float = 60.0) -> None:
        """Touches nothing yet.

        `patience` is how many seconds the server may take to answer once its container runs; to
        pull the image takes what it takes.
        """
        self._job = job
        self._patience = patience
        self._host = docker_host()
        self._image = job.image or DEFAULT_IMAGE
        self._container: DockerContainer | None = None
        self._making = threading.RLock()
        self._stopped = threading.Event()
        self._removed = False

    def start(self) -> Started:
        """Starts the container; returns when the server in it answers over TCP.

        The official image starts a server without a network first, to set itself up, and then the
        real one; what answers is the real one:
        https://github.com/docker-library/postgres/blob/master/docker-entrypoint.sh
        (`docker_temp_server_start`). Raises ServerFailed, and leaves nothing behind then.
        """
        try:
            return self._started()
        except BaseException as error:
            with contextlib.suppress(ServerFailed):
                self.stop()
            if isinstance(error, ServerFailed) or not isinstance(error, Exception):
                raise
            raise start_failure(error, self._image, self._host) from error

    def stop(self) -> None:
        """Removes the container and its volumes; nothing happens the second time.

        May be called by another thread than that in `start`, which raises ServerFailed then. A
        container that is being made at this moment is waited for, for up to 5 seconds. Raises
        ServerFailed if the daemon cannot be asked.
        """
        self._stopped.set()
        held = self._making.acquire(timeout=_QUICK)
        try:
            if self._container is not None:
                self._container.get_docker_client().client.close()
            if self._container is not None and not self._removed:
                _take_away(self._job.run, self._host, 0 if held else _IN_FLIGHT)
                self._removed = held
        finally:
            if held:
                self._making.release()

    def died(self) -> str | None:
        """Why the container does not run, with its last log lines; None while it runs.

        None also while the daemon does not answer, which proves nothing about the server.
        """
        end = self._end()
        return f"the container {container_name(self._job.run)} {end}{self._log()}" if end else None

    def _started(self) -> Started:
        _connected(self._host, _QUICK).close()
        self._container = container = _container(self._image, self._host)
        self._image = container.image  # with the registry's prefix, if testcontainers was told one
        self._prepare(container)
        self._make(container)
        host, port = self._address(container)
        self._wait(host, port)
        name = container_name(self._job.run)
        return Started(host, port, notes={"container": name, "image": self._image})

    def _prepare(self, container: DockerContainer) -> None:
        docker = container.get_docker_client()
        config = _image_config(docker, self._image, self._host)
        container.with_name(container_name(self._job.run))
        container.with_command(_command(config))
        for name, value in _environment(self._job, _variables(config)).items():
            container.with_env(name, value)
        container.ports = _ports(docker, self._host)
        container.with_kwargs(labels={LABEL: self._job.run}, mounts=[_memory()])

    def _make(self, container: DockerContainer) -> None:
        with self._making:
            self._go_on()
            container.start()

    def _address(self, container: DockerContainer) -> tuple[str, int]:
        """Where the server is reached; the very address if it is published on that alone."""
        docker = container.get_docker_client()
        try:
            host, port = container.get_container_host_ip(), _PORT
            if docker.get_connection_mode().use_mapped_port:
                port = int(docker.port(container.get_wrapped_container().id, _PORT))
            if not host:  # a socket would take it for this machine
                raise RuntimeError("the container has no address in its network")
        except Exception as error:
            raise self._ended_early() or error from error
        return ("127.0.0.1" if _loopback_only(docker, self._host) else host), port

    def _wait(self, host: str, port: int) -> None:
        end = time.monotonic() + self._patience
        look = 0.0
        while not answers(host, port, self._job.admin.user):
            self._go_on()
            if time.monotonic() >= look:
                if failure := self._ended_early():
                    raise failure
                look = time.monotonic() + 0.1
            if time.monotonic() > end:
                raise self._silent(host, port)
            time.sleep(0.01)

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise ServerFailed("the run ended while its container was being started", "run the tests again")

    def _ended_early(self) -> ServerFailed | None:
        end = self._end()
        if end is None:
            return None
        return ServerFailed(
            f"the container of image {self._image} {end} before Postgres answered{self._log()}",
            "name an image that is made like the official `postgres` with --pgdbm-image; to see"
            f" what this one does: docker run --rm -e POSTGRES_PASSWORD=secret {self._image}",
        )

    def _silent(self, host: str, port: int) -> ServerFailed:
        return ServerFailed(
            f"no Postgres answered at {host}:{port} within {self._patience:g} s after the container"
            f" of image {self._image} had started{self._log()}",
            "if its log shows that the server is ready, set TESTCONTAINERS_HOST_OVERRIDE to the"
            " address of the Docker host as seen from here; otherwise name an image that is made"
            " like the official `postgres` with --pgdbm-image",
        )

    def _end(self) -> str | None:
        """How the container came to its end, as the end of a sentence; None if it did not."""
        from docker.errors import NotFound

        if self._container is None:
            return None
        if self._removed:
            return "was removed"
        try:
            container = self._container.get_wrapped_container()
            container.reload()
        except NotFound:
            return "was removed"
        except Exception:
            return None
        return _end(container.attrs["State"])

    def _log(self) -> str:
        """The last lines that the container wrote, to be put behind a statement."""
        from docker.errors import NotFound

        assert self._container is not None
        try:
            written: bytes = self._container.get_wrapped_container().logs(tail=_LOG_LINES)
        except NotFound:
            return ""
        except Exception as error:
            return f"; its log cannot be read: {_short(error)}"
        text = masked(written.decode(errors="replace").strip())
        if self._job.admin.password:
            text = text.replace(self._job.admin.password, HIDDEN)
        lines = "".join(f"\n  {line}" for line in text.splitlines())
        return f"; the end of its log:{lines}" if lines else "; it wrote nothing"


def answers(host: str, port: int, user: str, timeout: float = 1.0) -> bool:
    """Whether a Postgres server that lets people in answers there within `timeout` seconds.

    A TCP connection proves nothing: Docker's proxy accepts it before there is a server. So this
    sends what a client sends first. A server that is not ready refuses it with an SQLSTATE of class
    57P0; every other answer, a refusal included, is that of a server that works:
    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
    """
    words = ("user", user, "database", DATABASE)
    text = b"".join(word.encode() + b"\0" for word in words) + b"\0"
    try:
        with socket.create_connection((host, port), timeout) as link:
            link.sendall(struct.pack("!ii", 8 + len(text), 3 << 16) + text)
            reply = link.recv(4096)
    except OSError:
        return False
    return reply[:1] == b"R" or (reply[:1] == b"E" and b"\0C57P0" not in reply)


def start_failure(error: Exception, image: str, host: str) -> ServerFailed:
    """What to tell the user of an error of the daemon while it made a container of this image."""
    return _explained(error, _STARTING, image, host)


def pull_failure(error: Exception, image: str, host: str) -> ServerFailed:
    """What to tell the user of an error of the daemon while it looked for or pulled this image."""
    return _explained(error, _PULLING, image, host)


def _container(image: str, host: str) -> DockerContainer:
    try:
        from testcontainers.core import config
        from testcontainers.core.container import DockerContainer

        mode = config.get_user_overwritten_connection_mode()
    except Exception as error:
        raise ServerFailed(
            f"testcontainers cannot be used: {_short(error)}",
            "pip install --upgrade testcontainers, and check the variables TESTCONTAINERS_*",
        ) from error
    config.testcontainers_config.ryuk_disabled = True
    # testcontainers 4.9 and 4.10 read TESTCONTAINERS_CONNECTION_MODE only when asked like this.
    config.testcontainers_config.connection_mode_override = mode
    return DockerContainer(image, docker_client_kw={"timeout": _PATIENT, **_connection(host)})


def _command(image: Mapping[str, Any]) -> list[str]:
    """The image's own command, which may load a library, with the settings for tests behind it."""
    major = _variables(image).get("PG_MAJOR", "")
    tuned = settings(int(major) if major.isdecimal() else None)
    return [*(image.get("Cmd") or ["postgres"]), *arguments(tuned)]


def _environment(job: Job, image: Mapping[str, str]) -> dict[str, str]:
    """The variables of the official image: https://hub.docker.com/_/postgres."""
    return {
        "POSTGRES_USER": job.admin.user,
        "POSTGRES_PASSWORD": job.admin.password or "",
        "POSTGRES_DB": DATABASE,
        "POSTGRES_INITDB_ARGS": f"{image.get('POSTGRES_INITDB_ARGS', '')} --no-sync".strip(),
        "PGDATA": _PGDATA,
    }


def _variables(image: Mapping[str, Any]) -> dict[str, str]:
    """The environment that the image brings, `PG_MAJOR` of the official one among it."""
    return dict(word.partition("=")[::2] for word in image.get("Env") or ())


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


def _image_config(docker: DockerClient, image: str, host: str) -> Mapping[str, Any]:
    """The image's `Config`, as the daemon knows it; the image is pulled if it is not there."""
    from docker.errors import ImageNotFound

    images = docker.client.images
    try:
        try:
            found = images.get(image)
        except ImageNotFound:
            _pull(docker.client, image)
            found = images.get(image)
    except Exception as error:
        raise pull_failure(error, image, host) from error
    return found.attrs["Config"] or {}


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


def _end(state: Mapping[str, Any]) -> str | None:
    """What the `State` of a container says of its end; None if it did not end."""
    if state["Status"] not in ("exited", "dead", "removing"):
        return None
    if state.get("OOMKilled"):
        return "ended for lack of memory"
    return f"ended with status {state.get('ExitCode')}"


def _take_away(run: str, host: str, grace: float) -> None:
    client = _connected(host, _QUICK)
    client.api.timeout = _PATIENT
    try:
        _remove(client, run, grace)
    except Exception as error:
        name = container_name(run)
        raise ServerFailed(
            f"the container {name} at {masked(host)} could not be removed: {_short(error)}",
            f"docker rm --force --volumes {name}",
        ) from error
    finally:
        client.close()


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
            if waited > _PATIENT:
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


def _connected(host: str, timeout: float) -> docker.DockerClient:
    """A client of the Docker daemon, which has answered. Raises ServerFailed."""
    try:
        import docker

        _knock(host, timeout)
        # Making the client asks the daemon for its version.
        return docker.from_env(timeout=timeout, version="auto", **_connection(host))
    except Exception as error:
        raise _unreachable(error, host, f"within {timeout:g} s") from error


def _knock(host: str, timeout: float) -> None:
    """Raises OSError if nobody listens at a Unix socket, where docker would leave its own open."""
    if not host.startswith("unix:"):
        return
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout)
        link.connect("/" + host.removeprefix("unix:").lstrip("/"))


def _connection(host: str) -> dict[str, Any]:
    """The keywords of `docker.from_env` that lead to this host; over ssh with the user's `ssh`."""
    environment = {**os.environ, "DOCKER_HOST": host}
    return {"environment": environment, "use_ssh_client": host.startswith("ssh://")}


def _host_in_properties() -> str | None:
    try:
        text = (Path.home() / ".testcontainers.properties").read_text()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    found = re.search(r"^\s*tc\.host\s*=\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def _host_of_context() -> str | None:
    try:
        from docker.context import ContextAPI

        context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
        return context.Host or None if context.Name != "default" else None
    except Exception:
        return None  # no such context, or a file that cannot be read: the usual place is tried


def _usual_host() -> str:
    windows = sys.platform == "win32"
    return "npipe:////./pipe/docker_engine" if windows else "unix:///var/run/docker.sock"


def _unreachable(error: Exception, host: str, how_soon: str) -> ServerFailed:
    where = masked(host)
    start = "start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to where it listens"
    if _caused_by(error, PermissionError):
        return ServerFailed(
            f"this user may not use the Docker daemon at {where}: permission denied",
            "sudo usermod -aG docker $USER, then log in anew",
        )
    if _caused_by(error, FileNotFoundError) and host.startswith("unix:"):
        if host == _usual_host() and shutil.which("docker") is None:
            return ServerFailed(
                f"Docker is not installed: there is no `docker` command, and nothing at {where}",
                "install Docker: https://docs.docker.com/engine/install/",
            )
        return ServerFailed(f"the Docker daemon does not run: there is nothing at {where}", start)
    if _caused_by(error, ConnectionRefusedError):
        return ServerFailed(f"the Docker daemon does not run: nothing listens at {where}", start)
    if _caused_by(error, socket.gaierror):
        return ServerFailed(f"the host name in {where} is not known", "correct DOCKER_HOST")
    if _caused_by(error, TimeoutError) or "timed out" in str(error):
        return ServerFailed(f"the Docker daemon at {where} did not answer {how_soon}", start)
    return ServerFailed(
        f"the Docker daemon at {where} cannot be used: {_short(error)}",
        "see that `docker version` works, and correct DOCKER_HOST",
    )


@dataclass(frozen=True)
class _Sign:
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
        return _unreachable(error, host, f"within {_PATIENT:g} s")
    text = _short(error)
    sign = next(sign for sign in signs if re.search(sign.words, text, re.IGNORECASE))
    return sign.failure(image, text)


def _short(error: Exception) -> str:
    """What the daemon said, or else the error's own text, on one line."""
    text = getattr(error, "explanation", None) or str(error) or type(error).__name__
    return masked(" ".join(str(text).split()))


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
