"""Text in, a transformers language model out: pure PyTorch and Arrow, without Prefect."""

import os

from lmcore.signals import end_at_once, is_command

if is_command():
    end_at_once()  # what a command imports takes seconds, and Ctrl-C has no traceback then either

SPIN_COUNT = "1000"
"""Turns that threads on a CPU spin while they wait for each other; runs/spinning.py chooses better for a training."""
if "OMP_WAIT_POLICY" not in os.environ:
    # Must be set before torch loads; what a person has set stays, and child processes inherit it.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
