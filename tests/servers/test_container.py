"""Containers on a real engine: started, reached, removed; and what is said where that fails."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import engine
import pytest
from docker.errors import APIError, NotFound
from engine import IMAGE, is_there

from pytest_pgdbm.ground.endpoint import Login
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.ground.names import new_run
from pytest_pgdbm.servers.answering import answers
from pytest_pgdbm.servers.base import Job, Started
from pytest_pgdbm.servers.container import ContainerServer
from pytest_pgdbm.servers.docker_address import docker_host
from pytest_pgdbm.servers.docker_engine import LABEL, container_name, docker_reachable, remove_container
from pytest_pgdbm.servers.docker_errors import pull_failure, start_failure

PASSWORD = "only-for-this-run"
MakeServer = Callable[..., ContainerServer]
MakeImage = Callable[..., str]

needs_engine = pytest.mark.container


@pytest.fixture(scope="module")
def daemon() -> Iterator[Any]:
    with engine.opened() as client:
        yield client


def job(image: str = IMAGE, run: str | None = None) -> Job:
    admin = Login("boss", PASSWORD)
    return Job(run or new_run(), "container", "/nowhere", admin, image=image)


def query(started: Started, sql: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(
            host=started.host,
            port=started.port,
            user="boss",
            password=PASSWORD,
            database="postgres",
            ssl=False,
        )
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def shared(daemon: Any) -> Iterator[tuple[Job, ContainerServer, Started]]:
    """A server for the tests that only look at it."""
    asked = job()
    server = ContainerServer(asked)
    started = server.start()
    yield asked, server, started
    server.stop()


@pytest.fixture
def make_server(daemon: Any) -> Iterator[MakeServer]:
    made: list[str] = []

    def make(image: str = IMAGE, *, run: str | None = None, patience: float = 60) -> ContainerServer:
        asked = job(image, run)
        made.append(container_name(asked.run))
        return ContainerServer(asked, patience=patience)

    yield make
    for name in made:
        with contextlib.suppress(NotFound):
            daemon.containers.get(name).remove(force=True, v=True)


@pytest.fixture(scope="module")
def make_image(daemon: Any) -> Iterator[MakeImage]:
    """Images that are the one at hand but for some lines of a Dockerfile."""
    made: list[str] = []

    def make(*lines: str) -> str:
        base = daemon.containers.create(IMAGE)
        try:
            tag = f"pgdbm-test-{new_run()}:1"
            base.commit(*tag.split(":"), changes="\n".join(lines))
        finally:
            base.remove(v=True)
        made.append(tag)
        return tag

    yield make
    for tag in made:
        daemon.images.remove(tag, force=True)


@pytest.fixture(scope="module")
def no_postgres(make_image: MakeImage) -> str:
    """An image that says something and ends."""
    return make_image('ENTRYPOINT ["sh", "-c", "echo this is no Postgres, $POSTGRES_PASSWORD; exit 3"]')


@pytest.fixture(scope="module")
def idle(make_image: MakeImage) -> str:
    """An image that says something and never listens."""
    return make_image('ENTRYPOINT ["sh", "-c", "echo resting; exec sleep 600"]')


# --- a server that works


@needs_engine
def test_what_it_returns_says_where_and_what_it_is(
    shared: tuple[Job, ContainerServer, Started],
) -> None:
    asked, _, started = shared

    assert started.notes == {"container": container_name(asked.run), "image": IMAGE}
    assert started.socket_dir is None
    assert started.log is None


@needs_engine
@pytest.mark.parametrize(("name", "value"), [("fsync", "off"), ("synchronous_commit", "off"), ("timezone", "UTC")])
def test_the_server_is_tuned_for_tests(shared: tuple[Job, ContainerServer, Started], name: str, value: str) -> None:
    assert query(shared[2], f"SHOW {name}") == value


@needs_engine
def test_the_admin_of_the_job_is_a_superuser_with_the_password_of_the_job(
    shared: tuple[Job, ContainerServer, Started],
) -> None:
    *_, started = shared

    assert query(started, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    assert query(started, "SELECT rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = 'boss'")


@needs_engine
def test_the_data_lies_on_a_tmpfs(daemon: Any, shared: tuple[Job, ContainerServer, Started]) -> None:
    asked, _, started = shared
    data = query(started, "SHOW data_directory")

    container = daemon.containers.get(container_name(asked.run))
    found = container.exec_run(["stat", "--file-system", "--format=%T", data])

    assert found.output.strip() == b"tmpfs"


@needs_engine
def test_the_container_carries_the_run_in_its_label(daemon: Any, shared: tuple[Job, ContainerServer, Started]) -> None:
    run = shared[0].run

    assert daemon.containers.get(f"pgdbm-{run}").labels["pytest-pgdbm.run"] == run


@needs_engine
def test_a_command_and_initdb_arguments_of_the_image_stay(make_image: MakeImage, make_server: MakeServer) -> None:
    image = make_image(
        'CMD ["postgres", "-c", "cluster_name=theirs", "-c", "fsync=on"]',
        "ENV POSTGRES_INITDB_ARGS=--data-checksums",
    )
    server = make_server(image)
    started = server.start()
    try:
        assert query(started, "SHOW cluster_name") == "theirs"
        assert query(started, "SHOW data_checksums") == "on"
        assert query(started, "SHOW fsync") == "off"
    finally:
        server.stop()


# --- an engine that is elsewhere


@pytest.fixture
def far_engine(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The engine, reached by TCP through a relay of bytes, as one on another machine is."""
    path = docker_host().removeprefix("unix://")
    if not Path(path).is_socket():
        pytest.skip("the engine is far already")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(path)
                back = threading.Thread(target=pump, args=(engine, self.request))
                back.start()
                pump(self.request, engine)
                back.join()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(65536):
                target.sendall(some)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        threading.Thread(target=relay.serve_forever, args=(0.01,)).start()
        host = f"tcp://127.0.0.1:{relay.server_address[1]}"
        monkeypatch.setenv("DOCKER_HOST", host)
        yield host
        relay.shutdown()


@needs_engine
def test_on_an_engine_elsewhere_the_port_is_published_so_that_it_can_be_reached(
    daemon: Any, make_server: MakeServer, far_engine: str
) -> None:
    server = make_server()
    started = server.start()
    try:
        ports = daemon.containers.get(started.notes["container"]).ports["5432/tcp"]
        assert {"HostIp": "0.0.0.0", "HostPort": str(started.port)} in ports
        assert query(started, "SELECT 1") == 1
    finally:
        server.stop()


SCRIPT = """
import json, sys
from pytest_pgdbm.servers.base import Job
from pytest_pgdbm.servers.container import ContainerServer

asked = Job.from_json(json.loads(sys.argv[1]))
server = ContainerServer(asked)
print("starts", flush=True)
started = server.start()
print(json.dumps([started.host, started.port]), flush=True)
sys.stdin.read()
sys.path.clear()  # whoever uses the environment may have removed it by now
server.stop()
"""

KILLED_WHILE_IT_ASKS = """
import os, signal, sys, threading

def watch(event, arguments):
    if event == "http.client.send" and b"/containers/create" in bytes(arguments[1]):
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()

sys.addaudithook(watch)
"""


@contextlib.contextmanager
def other_process(asked: Job, *, before: str = "", **environment: str | None) -> Iterator[subprocess.Popen[str]]:
    """A process that starts the container, says where it is, and stops it when its input ends."""
    merged = {**os.environ, **environment}
    with subprocess.Popen(
        [sys.executable, "-c", before + SCRIPT, json.dumps(asked.to_json())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in merged.items() if value is not None},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starts\n"
        yield process


def started_by(process: subprocess.Popen[str]) -> Started:
    assert process.stdout is not None
    return Started(*json.loads(process.stdout.readline()))


@needs_engine
def test_on_an_engine_here_the_port_is_published_on_the_loopback_address_alone(daemon: Any) -> None:
    if not docker_host().startswith("unix:"):
        pytest.skip("the engine is not on this machine")
    asked = job()
    mode = {"TESTCONTAINERS_CONNECTION_MODE": "docker_host", "TESTCONTAINERS_HOST_OVERRIDE": "localhost"}
    with other_process(asked, **mode) as process:
        started = started_by(process)
        ports = daemon.containers.get(container_name(asked.run)).ports
        process.communicate("")

    assert started.host == "127.0.0.1"
    assert ports == {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(started.port)}]}


@needs_engine
def test_in_bridge_mode_the_container_is_reached_at_its_own_address_and_nothing_is_published(daemon: Any) -> None:
    asked = job()
    mode = {"TESTCONTAINERS_CONNECTION_MODE": "bridge_ip"}
    with other_process(asked, **mode) as process:
        started = started_by(process)
        container = daemon.containers.get(container_name(asked.run))
        networks = container.attrs["NetworkSettings"]["Networks"]
        assert started.host in [network["IPAddress"] for network in networks.values()]
        assert started.port == 5432
        assert not any(container.ports.values())
        assert query(started, "SELECT 1") == 1
        process.communicate("")
    assert process.returncode == 0


@needs_engine
def test_a_connection_mode_that_does_not_exist_is_told(daemon: Any) -> None:
    with other_process(job(), TESTCONTAINERS_CONNECTION_MODE="pigeon") as process:
        _, errors = process.communicate()

    assert "testcontainers cannot be used: Error parsing TESTCONTAINERS_CONNECTION_MODE" in errors
    assert "pip install --upgrade testcontainers, and check the variables TESTCONTAINERS_*" in errors


@needs_engine
def test_it_works_without_any_variable_of_testcontainers_and_starts_no_reaper(daemon: Any) -> None:
    asked = job()
    unset: dict[str, Any] = {name: None for name in os.environ if name.startswith("TESTCONTAINERS_")}
    before = {container.name for container in daemon.containers.list(all=True)}
    with other_process(asked, **unset) as process:
        started = started_by(process)
        after = {container.name for container in daemon.containers.list(all=True)}
        assert query(started, "SELECT 1") == 1
        process.communicate("")
    assert container_name(asked.run) in after
    assert not [name for name in after - before if "ryuk" in name]


# --- taking it away


@needs_engine
def test_a_login_works_as_soon_as_start_returns_and_stop_removes_container_and_volumes(
    daemon: Any, make_image: MakeImage, make_server: MakeServer
) -> None:
    server = make_server(make_image("VOLUME /var/lib/postgresql/data"))
    started = server.start()
    assert query(started, "SELECT 1") == 1
    container = daemon.containers.get(started.notes["container"])
    volumes = [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"]

    server.stop()
    server.stop()

    assert not is_there(daemon, started.notes["container"])
    assert len(volumes) == 1
    assert not {volume.name for volume in daemon.volumes.list()} & set(volumes)


@needs_engine
def test_stop_before_start_does_nothing(make_server: MakeServer) -> None:
    server = make_server()

    server.stop()

    assert server.died() is None


@needs_engine
def test_stop_from_another_thread_ends_a_start_that_is_under_way(
    daemon: Any, make_server: MakeServer, idle: str
) -> None:
    run = new_run()
    server = make_server(idle, run=run)
    name = container_name(run)
    failures = []

    def start() -> None:
        try:
            server.start()
        except ServerFailed as failure:
            failures.append(failure.why)

    starting = threading.Thread(target=start)
    starting.start()
    wait_until(lambda: is_there(daemon, name))
    server.stop()
    starting.join(5)

    assert failures == ["the run ended while its container was being started"]
    assert not is_there(daemon, name)


@needs_engine
def test_what_a_process_was_making_when_it_was_killed_is_removed(daemon: Any) -> None:
    asked = job()
    with other_process(asked, before=KILLED_WHILE_IT_ASKS) as process:
        process.wait()
    assert process.returncode == -signal.SIGKILL

    remove_container(asked.run)

    time.sleep(0.3)  # nothing tells that a container will not be made
    assert not is_there(daemon, container_name(asked.run))


@needs_engine
def test_what_a_process_had_made_when_it_was_killed_is_removed(daemon: Any) -> None:
    asked = job()
    with other_process(asked) as process:
        wait_until(lambda: is_there(daemon, container_name(asked.run)))
        process.kill()

    remove_container(asked.run)

    assert not is_there(daemon, container_name(asked.run))


@needs_engine
def test_several_may_remove_a_container_at_once(daemon: Any, idle: str) -> None:
    run = new_run()
    daemon.containers.run(idle, name=container_name(run), labels={LABEL: run}, detach=True)

    with concurrent.futures.ThreadPoolExecutor() as others:
        for removed in [others.submit(remove_container, run) for _ in range(4)]:
            removed.result()

    assert not is_there(daemon, container_name(run))


@needs_engine
def test_to_remove_what_is_not_there_is_no_error(daemon: Any) -> None:
    remove_container(new_run(), docker_host())


@needs_engine
@pytest.mark.parametrize("labels", [{}, {LABEL: "another0run"}])
def test_a_container_of_the_same_name_that_is_not_ours_stays(daemon: Any, labels: dict[str, str]) -> None:
    run = new_run()
    foreign = daemon.containers.create(IMAGE, name=container_name(run), labels=labels)
    try:
        remove_container(run)
        assert is_there(daemon, foreign.id)
    finally:
        foreign.remove(v=True)


@needs_engine
def test_a_name_that_is_taken_is_an_error_and_its_owner_keeps_it(daemon: Any, make_server: MakeServer) -> None:
    run = new_run()
    server = make_server(run=run)
    name = container_name(run)
    foreign = daemon.containers.create(IMAGE, name=name)
    try:
        with pytest.raises(ServerFailed) as caught:
            server.start()
        assert is_there(daemon, foreign.id)
    finally:
        foreign.remove(v=True)

    assert caught.value.why.startswith("a container that the plugin did not make has the name of this run: Conflict.")
    assert caught.value.remedy == "run the tests again: the next run has another name"


# --- the death of a server


@needs_engine
def test_died_tells_how_the_server_ended(daemon: Any, make_server: MakeServer) -> None:
    server = make_server()
    name = server.start().notes["container"]
    assert server.died() is None

    container = daemon.containers.get(name)
    container.kill()
    container.wait()
    killed = server.died()
    container.remove(v=True)

    assert killed is not None
    assert killed.startswith(f"the container {name} ended with status 137; the end of its log:\n  ")
    assert "database system is ready to accept connections" in killed
    assert server.died() == f"the container {name} was removed"


@needs_engine
def test_a_container_that_ends_at_once_is_told_with_its_last_words_and_without_the_password(
    daemon: Any, make_server: MakeServer, no_postgres: str
) -> None:
    run = new_run()
    server = make_server(no_postgres, run=run)

    with pytest.raises(ServerFailed) as caught:
        server.start()

    assert caught.value.why == (
        f"the container of image {no_postgres} ended with status 3 before Postgres answered;"
        " the end of its log:\n  this is no Postgres, ****"
    )
    assert caught.value.remedy == (
        "name an image that is made like the official `postgres` with --pgdbm-image; to see what"
        f" this one does: docker run --rm -e POSTGRES_PASSWORD=secret {no_postgres}"
    )
    assert not is_there(daemon, container_name(run))


@needs_engine
def test_settings_follow_the_version_that_the_image_says_it_has(
    shared: tuple[Job, ContainerServer, Started], make_server: MakeServer, make_image: MakeImage
) -> None:
    server = make_server(make_image("ENV PG_MAJOR=16"))

    if int(query(shared[2], "SHOW server_version_num")) >= 160000:
        assert query(server.start(), "SHOW scram_iterations") == "1"
    else:
        with pytest.raises(ServerFailed, match='unrecognized configuration parameter "scram_iter'):
            server.start()
    server.stop()


@needs_engine
def test_a_container_that_never_answers_is_told_with_its_last_words(
    daemon: Any, make_server: MakeServer, idle: str
) -> None:
    run = new_run()
    server = make_server(idle, patience=0.3, run=run)

    with pytest.raises(ServerFailed) as caught:
        server.start()

    assert re.match(r"no Postgres answered at [\w.]+:\d+ within", caught.value.why)
    assert caught.value.why.endswith(
        f" within 0.3 s after the container of image {idle} had started; the end of its log:\n  resting"
    )
    assert caught.value.remedy == (
        "if its log shows that the server is ready, set TESTCONTAINERS_HOST_OVERRIDE to the"
        " address of the Docker host as seen from here; otherwise name an image that is made"
        " like the official `postgres` with --pgdbm-image"
    )
    assert not is_there(daemon, container_name(run))


@needs_engine
def test_an_image_that_cannot_be_run_is_told_and_leaves_nothing(
    daemon: Any, make_server: MakeServer, make_image: MakeImage
) -> None:
    image = make_image('ENTRYPOINT ["no-such-program"]')
    run = new_run()
    server = make_server(image, run=run)

    with pytest.raises(ServerFailed) as caught:
        server.start()

    assert caught.value.why.startswith(f"the image {image} cannot be run here: ")
    assert "no-such-program" in caught.value.why
    assert caught.value.remedy == (
        "name an image for this processor that is made like the official `postgres` with --pgdbm-image"
    )
    assert not is_there(daemon, container_name(run))


@needs_engine
def test_a_port_that_cannot_be_published_is_told(daemon: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"5432/tcp": ("127.0.0.1", taken.getsockname()[1])}
        container = daemon.containers.create(IMAGE, ports=port)
        try:
            with pytest.raises(APIError) as refused:
                container.start()
        finally:
            container.remove(v=True)

    told = start_failure(refused.value, IMAGE, docker_host())

    assert told.why.startswith(f"Docker could not publish the port of a container of image {IMAGE}")
    assert "address already in use" in told.why
    assert told.remedy == (
        f"see that `docker run --rm -p 127.0.0.1::5432 {IMAGE} true` works; to restart Docker"
        " brings its firewall rules back"
    )


# --- images that are not there


@contextlib.contextmanager
def registry(status: int, code: str, message: str) -> Iterator[str]:
    """A registry on the loopback address, where the engine asks for no TLS, that says only this."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path == "/v2/"
            self.send_response(200 if there else status)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2" if there else str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{}" if there else body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def local_engine(daemon: Any) -> None:
    if not docker_host().startswith("unix:"):
        pytest.skip("the engine cannot reach a registry on this machine")


@needs_engine
def test_an_image_whose_registry_cannot_be_reached_is_told(make_server: MakeServer) -> None:
    image = "127.0.0.1:1/postgres"

    with pytest.raises(ServerFailed) as caught:
        make_server(image).start()

    assert caught.value.why.startswith(
        f"the image {image} is not on this machine, and its registry cannot be reached: "
    )
    assert "connection refused" in caught.value.why
    assert caught.value.remedy == (
        f"docker pull {image} while there is a network, or name an image that `docker image ls`"
        " shows with --pgdbm-image"
    )


@needs_engine
def test_an_image_that_its_registry_does_not_have_is_told(make_server: MakeServer, local_engine: None) -> None:
    with registry(404, "MANIFEST_UNKNOWN", "manifest unknown") as host:
        image = f"{host}/team/postgres:17"
        with pytest.raises(ServerFailed) as caught:
            make_server(image).start()

    assert caught.value.why.startswith(f"there is no image {image} that this user may pull: ")
    assert "manifest unknown" in caught.value.why
    assert caught.value.remedy == "correct --pgdbm-image, or docker login if its registry is private"


@needs_engine
def test_a_limit_on_pulls_is_told_as_such(make_server: MakeServer, local_engine: None) -> None:
    said = "You have reached your unauthenticated pull rate limit."
    with registry(429, "TOOMANYREQUESTS", said) as host:
        image = f"{host}/postgres:17"
        with pytest.raises(ServerFailed) as caught:
            make_server(image).start()

    assert caught.value.why.startswith(
        f"the registry allows no more pulls of {image} for now (429, too many requests): "
    )
    assert said in caught.value.why
    assert caught.value.remedy == (
        f"docker login (the limit of an account is higher), or docker pull {image} later, or name"
        " the same image in another registry with --pgdbm-image"
    )


@needs_engine
def test_a_malformed_image_name_is_told(make_server: MakeServer) -> None:
    with pytest.raises(ServerFailed) as caught:
        make_server("Post Gres:17").start()

    assert caught.value.why.startswith("Post Gres:17 cannot be the name of an image: ")
    assert caught.value.remedy == ("correct --pgdbm-image; examples: postgres:17, registry.example/team/postgres:17")


def test_any_other_trouble_with_an_image_shows_the_words_of_the_engine() -> None:
    told = pull_failure(RuntimeError("no space left on device"), "postgres:17", "unix:///x")

    assert told.why == "the image postgres:17 could not be pulled: no space left on device"
    assert told.remedy == ("see that `docker pull postgres:17` works, or name another image with --pgdbm-image")


def test_any_other_trouble_with_a_container_shows_the_words_of_the_engine() -> None:
    told = start_failure(RuntimeError("no space\nleft on device"), "postgres:17", "unix:///x")

    assert told.why == ("a container of image postgres:17 could not be started: no space left on device")
    assert told.remedy == ("see that `docker run --rm -e POSTGRES_PASSWORD=secret postgres:17` works")


# --- engines that are not there

START_IT = "start it (sudo systemctl start docker, or Docker Desktop), or set DOCKER_HOST to where it listens"


def failure_at(host: str, monkeypatch: pytest.MonkeyPatch) -> ServerFailed:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(ServerFailed) as caught:
        ContainerServer(job()).start()
    return caught.value


def test_a_socket_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = failure_at("unix:///nonexistent/docker.sock", monkeypatch)

    assert told.why == ("the Docker daemon does not run: there is nothing at unix:///nonexistent/docker.sock")
    assert told.remedy == START_IT
    assert docker_reachable() == told.why


def test_a_port_where_nothing_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = failure_at("tcp://127.0.0.1:1", monkeypatch)

    assert told.why == "the Docker daemon does not run: nothing listens at tcp://127.0.0.1:1"
    assert told.remedy == START_IT
    assert docker_reachable() == told.why


def test_a_host_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = failure_at("tcp://no-such-host.invalid:2375", monkeypatch)

    assert told.why == "the host name in tcp://no-such-host.invalid:2375 is not known"
    assert told.remedy == "correct DOCKER_HOST"


def test_a_host_that_is_no_url_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    told = failure_at("gopher://me:hush@there", monkeypatch)

    assert told.why.startswith("the Docker daemon at gopher://me:****@there cannot be used: ")
    assert "hush" not in str(told)
    assert told.remedy == "see that `docker version` works, and correct DOCKER_HOST"


def test_an_engine_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("DOCKER_HOST", host)

        assert docker_reachable(0.2) == f"the Docker daemon at {host} did not answer within 0.2 s"


ASK = "from pytest_pgdbm.servers.docker_engine import docker_reachable; print(docker_reachable())"


# Asked before, so that everything is loaded that the other user may not read.
ASK_AS = f"{ASK}; import os, sys; os.setuid(int(sys.argv[1])); print(docker_reachable())"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be others")
def test_a_socket_that_this_user_may_not_use_is_told() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        path = Path(folder, "docker.sock")
        path.parent.chmod(0o755)
        listening.bind(str(path))
        path.chmod(0o600)
        said = subprocess.run(
            [sys.executable, "-c", ASK_AS, "65534"],
            env={**os.environ, "DOCKER_HOST": f"unix://{path}"},
            capture_output=True,
            text=True,
            check=True,
        )

    assert said.stdout.splitlines()[1] == (
        f"this user may not use the Docker daemon at unix://{path}: permission denied"
    )


@needs_engine
def test_an_engine_that_answers_is_found_without_testcontainers(daemon: Any) -> None:
    program = f"{ASK}; import sys; print('testcontainers' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert said.stdout.split() == [b"None", b"False"]


def test_what_cannot_be_removed_for_lack_of_an_engine_is_an_error() -> None:
    with pytest.raises(ServerFailed, match="does not run"):
        remove_container(new_run(), "unix:///nonexistent/docker.sock")


# --- where the engine is looked for


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make_context(home: Path, name: str, host: str) -> None:
    digest = __import__("hashlib").sha256(name.encode()).hexdigest()
    folder = home / ".docker" / "contexts" / "meta" / digest
    folder.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
    (folder / "meta.json").write_text(json.dumps(meta))


def test_without_any_setting_the_usual_socket_is_tried(empty_home: Path) -> None:
    assert docker_host() == "unix:///var/run/docker.sock"


def test_the_current_context_of_the_docker_command_is_followed(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_context(empty_home, "far", "tcp://far:2375")
    make_context(empty_home, "near", "unix:///near.sock")
    (empty_home / ".docker" / "config.json").write_text('{"currentContext": "far"}')
    assert docker_host() == "tcp://far:2375"

    monkeypatch.setenv("DOCKER_CONTEXT", "near")
    assert docker_host() == "unix:///near.sock"


def test_the_environment_goes_over_the_context_and_the_properties_over_the_environment(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_context(empty_home, "far", "tcp://far:2375")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    monkeypatch.setenv("DOCKER_HOST", "tcp://environment:2375")
    assert docker_host() == "tcp://environment:2375"

    (empty_home / ".testcontainers.properties").write_text("tc.host = tcp://properties:2375\n")
    assert docker_host() == "tcp://properties:2375"


def test_a_context_that_does_not_exist_falls_back_to_the_usual_socket(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "forgotten")

    assert docker_host() == "unix:///var/run/docker.sock"


# --- the question whether it is Postgres that answers


@contextlib.contextmanager
def speaker(reply: bytes) -> Iterator[int]:
    """A server that says this to everyone who has spoken."""

    class Speak(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(reply)

    with socketserver.TCPServer(("127.0.0.1", 0), Speak) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server.server_address[1]
        server.shutdown()


def refusal(sqlstate: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0Mno\0\0".encode()
    return b"E" + (4 + len(fields)).to_bytes(4, "big") + fields


@pytest.mark.parametrize(
    ("reply", "ready"),
    [
        (b"R\0\0\0\x0c\0\0\0\x05salt", True),
        (refusal("28000"), True),
        (refusal("53300"), True),
        (refusal("57P03"), False),
        (refusal("57P01"), False),
        (b"", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
    ],
)
def test_only_the_answer_of_a_server_that_is_ready_counts(reply: bytes, ready: bool) -> None:
    with speaker(reply) as port:
        assert answers("127.0.0.1", port, "boss") is ready


def test_a_port_that_nothing_listens_at_does_not_answer() -> None:
    assert not answers("127.0.0.1", 1, "boss")


def test_a_port_that_accepts_and_says_nothing_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not answers("127.0.0.1", silent.getsockname()[1], "boss", timeout=0.1)
