"""The side of a training loop that is measured in a process of its own; training.py is the other side.

The loop runs on and on, and calls ``next(done)`` after every step. Between rounds it stands still in that call, until a
line on standard input lets it make the steps of the next one; so loops take turns without starting again. What a
round took goes to standard output as a line of JSON. Needs torch alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_output = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no measurement


def tell(**figures: Any) -> None:
    print(json.dumps(figures), file=_output, flush=True)


def rounds(spec: dict[str, Any], finish: Callable[[], object] = lambda: None, **about: Any) -> Iterator[None]:
    """Measures ``spec["steps"]`` steps a round, after some to settle; ``finish`` is still measured."""
    for _ in range(spec["warm_up"]):
        yield
    tell(ready=True, **about)
    while _next_round():
        for _ in range(spec["settle"]):
            yield
        wall, cpu = _now()
        for _ in range(spec["steps"]):
            yield
        finish()
        wall_after, cpu_after = _now()
        tell(wall=wall_after - wall, cpu=cpu_after - cpu, peak_bytes=_peak_bytes())
    os._exit(0)


def _next_round() -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # others are next
    return bool(sys.stdin.readline())


def _now() -> tuple[float, float]:
    """Seconds by the clock, and those of all threads of this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _peak_bytes() -> int:
    """On the GPU; without one, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
