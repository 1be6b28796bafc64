"""The floors of the house: imports only go down, and few modules know pytest."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_pgdbm

PACKAGE = Path(pytest_pgdbm.__file__).parent

GROUND, VALUES, HANDS, POLICY, SESSION, EDGE = range(6)

FLOORS = {
    "loading": GROUND,
    "ground": GROUND,
    "settings": VALUES,
    "reading": VALUES,
    "sql": VALUES,
    "services.service": VALUES,
    "services.declarations": VALUES,
    "leasing.sets": VALUES,
    "doctor": POLICY,
    "report": POLICY,
    "services": HANDS,
    "servers.choosing": POLICY,
    "servers.keeping": POLICY,
    "servers": HANDS,
    "keeper": HANDS,
    "connections": HANDS,
    "schemas": HANDS,
    "leasing": POLICY,
    "session": SESSION,
    "fixtures": EDGE,
    "findings": EDGE,
    "plugin": EDGE,
}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path


def _floor(module: str) -> int:
    while module:
        if module in FLOORS:
            return FLOORS[module]
        module = module.rpartition(".")[0]
    raise AssertionError("every module stands on a floor")


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports, and whether only for its types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in for_types
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in for_types
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in for_types


def _own(name: str) -> str | None:
    return name.removeprefix("pytest_pgdbm.") if name.startswith("pytest_pgdbm.") else None


@pytest.mark.parametrize(("module", "path"), list(_modules()))
def test_imports_only_go_down(module: str, path: Path) -> None:
    names = {name for name, _ in _modules()}
    wrong = [
        used
        for imported, for_types in _imports(path)
        if (used := _own(imported)) in names and not for_types and _floor(used) > _floor(module)
    ]
    assert wrong == []


def test_only_the_edge_knows_pytest() -> None:
    knowing = {
        name.partition(".")[0]
        for name, path in _modules()
        for imported, _ in _imports(path)
        if imported.partition(".")[0] in ("pytest", "_pytest")
    }
    assert knowing == {"plugin", "fixtures", "findings"}


@pytest.mark.parametrize(("kind", "where"), [("schema", "schemas.drop"), ("database", "connections.cluster")])
def test_schemas_and_databases_are_dropped_in_one_module_each(kind: str, where: str) -> None:
    dropping = [name for name, path in _modules() if f"drop {kind}" in path.read_text(encoding="utf-8").lower()]
    assert dropping == [where]


def test_importing_the_plugin_loads_nothing_heavy() -> None:
    code = (
        "import sys, pytest_pgdbm.plugin;"
        "print([m for m in ('asyncpg', 'pgdbm', 'docker', 'testcontainers', 'filelock') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
