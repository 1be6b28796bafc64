"""How busy the machine is with other things; figures are only good where it is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOOK = 0.3
_BUSY = 0.1


def wait(patience: float) -> float:
    """Returns when others use less than a tenth of the processors, or after `patience` seconds; the share then."""
    until = time.monotonic() + patience
    while True:
        share = _share()
        if share < _BUSY or time.monotonic() > until:
            return share


def _share() -> float:
    before, began = _busy(), time.monotonic()
    time.sleep(_LOOK)
    return max(0.0, (_busy() - before) / (time.monotonic() - began) / (os.cpu_count() or 1))


def _busy() -> float:
    """The seconds that the processors were not idle; nothing where there is no /proc."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return 0.0
    # https://man7.org/linux/man-pages/man5/proc_stat.5.html: user nice system idle iowait irq softirq steal
    ticks = [int(number) for number in first[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
