"""Where tensors live and in which precision the model computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from lmcore.errors import ConfigError


def choose_device(name: Literal["auto", "cuda", "mps", "cpu"]) -> torch.device:
    """The named device; auto is the first of cuda, mps and cpu that is there.

    Raises ConfigError when the named one is not there.
    """
    there: dict[Literal["auto", "cuda", "mps", "cpu"], bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise ConfigError(f"train.device is {name}, which this machine does not have: use auto")
    return torch.device(name)


def choose_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """auto is bf16 on a GPU with bf16 units, where it pays off, and fp32 elsewhere."""
    if name != "auto":
        return name
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if gains else "fp32"


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[object]:
    """The context in which the model's forward pass runs. Weights and losses stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
