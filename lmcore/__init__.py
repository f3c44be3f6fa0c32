"""Text in, a transformers language model out: pure PyTorch and Arrow, without Prefect."""

from lmcore.signals import end_at_once, is_command

if is_command():
    end_at_once()  # what a command imports takes seconds, and Ctrl-C has no traceback then either
