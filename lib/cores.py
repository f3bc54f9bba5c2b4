"""How many threads a computation should have: one for every core that is free.

Threads that share their work evenly wait for the slowest of them: beside a process that holds a core, two threads on
two cores take twice as long as one. `python -m lib.cores` prints the number, and needs nothing but Python.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


def threads_to_use() -> int:
    """`OMP_NUM_THREADS` where it is set, else as many as cores were idle for half a second, and at least one.

    Where the system does not say what its cores do (Linux does), as many as there are.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if not _STAT.exists():
        return os.cpu_count() or 1
    before = _idle_and_all()
    time.sleep(0.5)
    changes = zip(before, _idle_and_all(), strict=True)
    free = sum(
        (idle - idle_before) / max(1, total - all_before) for (idle_before, all_before), (idle, total) in changes
    )
    return max(1, round(free))


def available_cores() -> int:
    """The cores that this process may use: how many processes to start, which share even busy cores fairly."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _idle_and_all() -> list[tuple[int, int]]:
    """For each core that this process may use, the time (ticks) it was idle, and all time."""
    usable = os.sched_getaffinity(0)
    times = []
    for line in _STAT.read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in usable:
            user, nice, system, idle, waiting, *rest = map(int, ticks)
            times.append((idle + waiting, user + nice + system + idle + waiting + sum(rest[:3])))
    return times


if __name__ == "__main__":
    print(threads_to_use())
