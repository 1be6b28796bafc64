"""A server that takes nothing but TLS, and from one role a certificate: each connection has what the URL says."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from conftest import Project
from databases import execute
from keeper.runs import a_job, a_run

from pytest_pgdbm.connections import login
from pytest_pgdbm.connections.admin import Admin
from pytest_pgdbm.ground.endpoint import Endpoint
from pytest_pgdbm.ground.errors import ServerFailed
from pytest_pgdbm.servers import embedded
from pytest_pgdbm.servers.base import new_record
from pytest_pgdbm.servers.embedded import EmbeddedServer
from pytest_pgdbm.servers.installations import find_installations

OPENSSL = shutil.which("openssl")
PARAMETERS = "sslmode={mode}&sslrootcert={ca}&sslcert={cert}&sslkey={key}"

# No line is for connections without TLS: whatever the plugin opened without it would be refused.
# https://www.postgresql.org/docs/current/auth-pg-hba-conf.html
HBA = """
hostssl all certified all cert
hostssl all all all scram-sha-256
"""
CONFIGURATION = """
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
ssl_ca_file = 'ca.crt'
"""


class Authority:
    """Certificates, all signed by one that this folder is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", *self._new("ca"), "-subj", "/CN=test authority", "-days", "2")
        self.ca = folder / "ca.crt"

    def certify(self, name: str, common_name: str, more: str = "") -> tuple[Path, Path]:
        """A certificate, and its key."""
        self._openssl("req", *self._new(name, ".csr"), "-subj", f"/CN={common_name}")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(more or "basicConstraints = CA:FALSE")
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", extensions.name]
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _new(self, name: str, kind: str = ".crt") -> list[str]:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        return [*curve, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}{kind}"]

    def _openssl(self, *arguments: str) -> None:
        assert OPENSSL is not None
        subprocess.run([OPENSSL, *arguments], cwd=self.folder, check=True, capture_output=True)


class TlsServer(EmbeddedServer):
    """A server of the plugin's kind that was given certificates."""

    certificate: tuple[Path, Path]
    ca: Path

    def _serve(self, made: embedded._Made) -> embedded.Started:
        files = {"server.crt": self.certificate[0], "server.key": self.certificate[1], "ca.crt": self.ca}
        for name, source in files.items():
            target = made.data / name
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            if made.account is not None:
                os.chown(target, made.account.uid, made.account.gid)
        (made.data / "pg_hba.conf").write_text(HBA)
        with open(made.data / "postgresql.conf", "a") as configuration:
            configuration.write(CONFIGURATION)
        return super()._serve(made)


@dataclass
class Site:
    """The server, with a database of the role that needs a certificate."""

    port: int
    authority: Authority
    certificate: tuple[Path, Path]

    def url(self, mode: str = "verify-full", host: str = "127.0.0.1", **changed: Path) -> str:
        cert, key = self.certificate
        files = {"ca": self.authority.ca, "cert": cert, "key": key, **changed}
        parameters = PARAMETERS.format(mode=mode, **{name: quote(str(path)) for name, path in files.items()})
        return f"postgresql://certified@{host}:{self.port}/app_test?{parameters}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if OPENSSL is None:
        pytest.skip("openssl is not installed, which makes the certificates")
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "authority")
    certificate = authority.certify("server", "test server", "subjectAltName = IP:127.0.0.1")
    server, admin = started(folder, authority, certificate)
    try:
        execute(admin, "create role certified login createdb")
        execute(admin, "create database app_test owner certified")
        yield Site(urlsplit(admin).port or 0, authority, authority.certify("client", "certified"))
    finally:
        server.stop()


def started(folder: Path, authority: Authority, certificate: tuple[Path, Path]) -> tuple[EmbeddedServer, str]:
    """A server from the first installation that knows TLS, and its superuser's URL."""
    for installation in find_installations():
        run = a_run(folder)
        run.folder.mkdir(mode=0o700)
        new_record(run.folder)
        job = a_job(run, installation=installation)
        server = TlsServer(job)
        server.ca, server.certificate = authority.ca, certificate
        try:
            place = server.start()
        except ServerFailed as error:
            if "SSL is not supported" not in error.why:
                raise
        else:
            who = f"{job.admin.user}:{job.admin.password}"
            return server, f"postgresql://{who}@{place.host}:{place.port}/postgres?sslmode=require"
    pytest.skip("no installed PostgreSQL was built with TLS; those of Linux distributions are")


SUITE = """
    import asyncpg
    import pytest
    from pytest_pgdbm import pgdbm_database, pgdbm_db

    users_db = pgdbm_db("users", seed={"users": [{"email": "ada@example.org"}]})
    whole = pgdbm_database("users", "orders")
    ALL = (
        "select count(*), bool_and(ssl), min(client_dn) from pg_stat_ssl join pg_stat_activity using (pid)"
        " where usename = current_user"
    )

    async def encrypted(connection):
        count, ssl, name = await connection.fetchrow(ALL)
        return count > 1 and ssl and name == "/CN=certified"

    @pytest.mark.parametrize("number", range(2))
    async def test_a_schema(users_db, pgdbm_url, number):
        async with users_db.acquire() as connection:
            assert await encrypted(connection)
        await users_db.execute("insert into {{tables.users}} (email) values ('x')")
        assert await users_db.fetch_value("select count(*) from {{tables.users}}") == 2
        assert users_db.dsn == pgdbm_url
        connection = await asyncpg.connect(pgdbm_url)
        assert await encrypted(connection)
        await connection.close()

    async def test_a_database(whole):
        connection = await asyncpg.connect(whole.url)
        assert await connection.fetchval("select current_database()") != "app_test"
        assert await encrypted(connection)
        await connection.close()
        async with whole.pool.acquire() as connection:
            assert await encrypted(connection)

    async def test_what_users_get(pgdbm_url, pgdbm_server, pytestconfig):
        assert pgdbm_url == pgdbm_server.url == pytestconfig.getoption("pgdbm_url")

    async def test_the_pool(pgdbm_pool):
        async with pgdbm_pool.acquire(), pgdbm_pool.acquire():
            assert "they are encrypted, and the state of the encryption cannot move" in repr(pgdbm_pool)
"""


@pytest.mark.parametrize(
    ("mode", "more"),
    [("require", []), ("verify-ca", ["--pgdbm-reuse=off"]), ("verify-full", []), ("verify-full", ["-n2"])],
)
def test_every_connection_is_made_as_the_url_says(project: Project, site: Site, mode: str, more: list[str]) -> None:
    project.url = site.url(mode)
    project.run_apart(*more, test=SUITE).assert_outcomes(passed=5)


def test_an_admin_url_has_its_own_parameters(project: Project, site: Site) -> None:
    project.url = site.url("require")
    project.run(f"--pgdbm-admin-url={site.url()}", test=SUITE).assert_outcomes(passed=5)


def test_a_server_that_another_authority_has_certified_is_refused(project: Project, site: Site, tmp_path: Path) -> None:
    project.url = site.url("verify-ca", ca=Authority(tmp_path / "another").ca)
    result = project.run(test=SUITE)
    result.stdout.fnmatch_lines(
        [
            f"*url: 127.0.0.1:{site.port}: TLS failed (*certificate verify failed*)",
            "*to mend it: check sslmode and sslrootcert in the URL",
        ]
    )


def test_a_server_of_another_name_is_refused_with_verify_full_alone(project: Project, site: Site) -> None:
    project.url = site.url("verify-full", host="localhost")
    result = project.run(test=SUITE)
    result.stdout.fnmatch_lines([f"*url: localhost:{site.port}: TLS failed (*localhost*)"])
    project.url = site.url("verify-ca", host="localhost")
    project.run("-k", "schema", test=SUITE).assert_outcomes(passed=2, deselected=3)


def test_a_certificate_that_is_missing_is_told(project: Project, site: Site) -> None:
    project.url = site.url().partition("&sslcert")[0]
    result = project.run(test=SUITE)
    result.stdout.fnmatch_lines([f"*url: 127.0.0.1:{site.port} refused the login: *certificate*"])


def test_a_session_that_is_encrypted_is_never_lent_as_a_line(site: Site) -> None:
    async def go() -> None:
        mine = login.Login("nobody")
        given = Endpoint("url", "", "127.0.0.1", site.port, "app_test", mine, mine, url=site.url())
        endpoint = await login.first_login(given, application_name="it")
        admin = Admin(endpoint, "app_test", application_name="it", path=None)
        for _ in range(2):
            async with admin.resetter() as connection:
                assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert admin.with_line(lambda line: line) is None
        await admin.close()

    asyncio.run(go())
