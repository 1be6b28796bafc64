"""The plugin's modules are loaded as they were installed."""

from __future__ import annotations

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
            assert by_pytest <= {"pytest_pgdbm.loading"}
            assert loaded_by(__name__) == "AssertionRewritingHook"
        """
    ).assert_outcomes(passed=1)
