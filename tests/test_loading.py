"""The plugin's modules are loaded as they were installed."""

from __future__ import annotations

import pytest
from conftest import Project


def test_pytest_does_not_compile_the_plugin_anew_but_for_what_sees_to_that(project: Project) -> None:
    project.run_apart(
        test="""
        import sys

        def loaded_by(name):
            return type(sys.modules[name].__loader__).__name__

        def test_it(pgdbm_url):
            ours = [name for name in sys.modules if name.startswith("pytest_pgdbm.")]
            by_pytest = {name for name in ours if loaded_by(name) == "AssertionRewritingHook"}
            assert len(ours) > 50
            assert by_pytest <= {"pytest_pgdbm.loading", "pytest_pgdbm.plugin"}
            assert loaded_by(__name__) == "AssertionRewritingHook"
        """
    ).assert_outcomes(passed=1)


def test_a_second_run_in_one_process_is_not_warned_of_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("plain.ini", "[pytest]")  # the other plugins' keys in the project's own would be unknown
    project.write("test_it.py", "def test_it(pgdbm_url):\n    assert pgdbm_url")
    project.write(
        "twice.py",
        f"""
        import pytest

        options = ["-c", "plain.ini", "-W", "error", "-p", "pytest_pgdbm.plugin", "--pgdbm-url={project.url}"]
        print([pytest.main([*options, "test_it.py"]) for _ in range(2)])
        """,
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = project.pytester.runpython(project.path / "twice.py")
    result.stdout.fnmatch_lines(["[[]<ExitCode.OK: 0>, <ExitCode.OK: 0>]"])
