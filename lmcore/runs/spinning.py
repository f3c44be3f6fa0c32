"""How long the threads of a training spin while they wait for each other on a CPU.

torch computes with libgomp's threads on Linux. libgomp reads the number of turns from the environment, once, before
torch loads, so it is chosen for the training process before it starts. Where a CPU is free for each thread, spinning
is fast. Where another process needs the CPU, a thread that spins stands in the way of the one that it waits for
(docs/benchmarks.md has the speeds).
"""

import os
import sys
import time
from pathlib import Path

from lmcore import SPIN_COUNT

FREE_CPUS, BUSY_CPUS = "2000", "0"
"""Turns. 0: a thread sleeps at once."""
SECONDS_TO_LOOK = 0.3
_IDLE = (3, 4)
"""Columns of /proc/stat: idle, and waiting for a disk."""


def spinning() -> dict[str, str]:
    """The environment variable for a training process that starts now.

    Empty where a person has chosen (GOMP_SPINCOUNT, OMP_WAIT_POLICY), and on systems without libgomp.
    """
    if sys.platform != "linux" or "OMP_WAIT_POLICY" in os.environ or os.environ.get("GOMP_SPINCOUNT") != SPIN_COUNT:
        return {}
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return {"GOMP_SPINCOUNT": FREE_CPUS if threads == 1 or idle_cpus() > threads - 0.5 else BUSY_CPUS}


def idle_cpus(seconds: float = SECONDS_TO_LOOK) -> float:
    """The number of CPUs of this machine that idle, on average over some seconds."""
    before, start = _idle_ticks(), time.monotonic()
    time.sleep(seconds)
    return (_idle_ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)


def _idle_ticks() -> int:
    columns = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    return sum(int(columns[column]) for column in _IDLE)
