"""Has the plugin's modules loaded as they were compiled when the plugin was installed.

pytest takes all modules of a plugin's package for some whose assertions are to be rewritten, and compiles them anew,
once in each environment. A run in a fresh one would wait for that nearly as long as for the server.
https://docs.pytest.org/en/stable/how-to/writing_plugins.html#assertion-rewriting
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OURS = f"{__package__}."
_PYTESTS = f"{_OURS}plugin"
"""The one that pytest loads by its name: it warns of a plugin that something else has loaded."""


class CompiledModules:
    """Finds the modules that the plugin loads, and no others, where Python would find them without pytest."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        if not name.startswith(_OURS) or name == _PYTESTS:
            return None
        return PathFinder.find_spec(name, path, target)


def prefer_compiled() -> None:
    """Puts it before pytest's finder."""
    sys.meta_path.insert(0, CompiledModules())
