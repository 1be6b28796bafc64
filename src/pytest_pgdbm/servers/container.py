"""A Postgres server in a container: made with testcontainers, owned by the keeper.

The run's id makes the container's name, so whoever knows the run can remove what a killed process made.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.masks import HIDDEN, masked
from pytest_pgdbm.servers.answering import answers
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.docker_address import QUICK, docker_host
from pytest_pgdbm.servers.docker_engine import IN_FLIGHT, connected, container_name, remove_container
from pytest_pgdbm.servers.docker_errors import short, start_failure
from pytest_pgdbm.servers.docker_recipe import address, new_container, prepare

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

DEFAULT_IMAGE = "postgres"
_LOG_LINES = 15


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
        held = self._making.acquire(timeout=QUICK)
        try:
            if self._container is not None:
                self._container.get_docker_client().client.close()
            if self._container is not None and not self._removed:
                remove_container(self._job.run, self._host, grace=0 if held else IN_FLIGHT)
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
        connected(self._host, QUICK).close()
        self._container = container = new_container(self._image, self._host)
        self._image = container.image  # with the registry's prefix, if testcontainers was told one
        prepare(container, self._job, self._host)
        self._make(container)
        host, port = self._address(container)
        self._wait(host, port)
        name = container_name(self._job.run)
        return Started(host, port, notes={"container": name, "image": self._image})

    def _make(self, container: DockerContainer) -> None:
        with self._making:
            self._go_on()
            container.start()

    def _address(self, container: DockerContainer) -> tuple[str, int]:
        try:
            return address(container, self._host)
        except Exception as error:
            raise self._ended_early() or error from error

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
            return f"; its log cannot be read: {short(error)}"
        text = masked(written.decode(errors="replace").strip())
        if self._job.admin.password:
            text = text.replace(self._job.admin.password, HIDDEN)
        lines = "".join(f"\n  {line}" for line in text.splitlines())
        return f"; the end of its log:{lines}" if lines else "; it wrote nothing"


def _end(state: Mapping[str, Any]) -> str | None:
    """What the `State` of a container says of its end; None if it did not end."""
    if state["Status"] not in ("exited", "dead", "removing"):
        return None
    if state.get("OOMKilled"):
        return "ended for lack of memory"
    return f"ended with status {state.get('ExitCode')}"
