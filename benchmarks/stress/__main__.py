"""The command line of the stress runs: each prints its figures, and fails if a promise was broken."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from benchmarks.stress import connections, kills, overlap

KINDS = (connections, kills, overlap)
"""Modules with `NAME`, `add_options(parser)` and `run(chosen)`, which returns lines and whether all went well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser("python -m benchmarks.stress", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in KINDS:
        each = kinds.add_parser(kind.NAME, help=kind.__doc__, description=kind.__doc__)
        kind.add_options(each)
        each.set_defaults(run=kind.run)
    chosen = parser.parse_args(arguments)
    lines, good = chosen.run(chosen)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    # What was started goes with it then, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
