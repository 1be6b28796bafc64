"""The script that becomes the keeper: `python boot.py TITLE ORDER`.

It lets the process that called it go at once, so that this one has no child to wait for. ORDER is a
file with the job, a password in it, and with the path to import from; it is removed as it is read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def _main(order_file: str) -> None:
    if hasattr(os, "fork") and os.fork() != 0:
        os._exit(0)
    order = json.loads(Path(order_file).read_text())
    Path(order_file).unlink()
    sys.path[:] = order["path"]

    from pytest_pgdbm.keeper.process import main

    main(order["job"])


if __name__ == "__main__":
    _main(sys.argv[2])
