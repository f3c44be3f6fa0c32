"""Text in, a transformers language model out: pure PyTorch and Arrow, without Prefect."""

import os

from lmcore.signals import end_at_once, is_command

if is_command():
    end_at_once()  # what a command imports takes seconds, and Ctrl-C has no traceback then either

if "OMP_WAIT_POLICY" not in os.environ:
    # Threads of libgomp, which torch computes with on a CPU, spin while they wait for each other. Spinning for long
    # stalls training beside other busy processes; not at all costs a third on a quiet machine (docs/benchmarks.md).
    # Must be set before torch loads; what a person has set stays, and child processes inherit it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
