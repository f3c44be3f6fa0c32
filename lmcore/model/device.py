"""The device, its precision and memory, and a lock for each GPU."""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from lmcore.errors import ConfigError
from lmcore.settings.config import TrainConfig
from lmcore.settings.training import DeviceChoice, Precision, PrecisionChoice
from lmcore.store.locks import locked

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: DeviceChoice, local_rank: int = 0) -> torch.device:
    """The named device. "auto" is the first available of cuda, mps and cpu; of several GPUs it is that of the rank.

    Raises ConfigError when it is not available.
    """
    there: dict[DeviceChoice, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise ConfigError(f"train.device is {name}, which is not available on this machine: use auto")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"train.nproc asks for GPU {local_rank}, this machine has {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def device_locked(
    device: torch.device, when_locked: Literal["wait", "refuse"], should_stop: Callable[[], bool]
) -> AbstractContextManager[None]:
    """A lock by which one training at a time uses a GPU; trainings share a CPU. Raises as ``locked`` does."""
    if device.type != "cuda":
        return nullcontext()
    name = torch.cuda.get_device_properties(device).uuid
    return locked(Path(tempfile.gettempdir()) / f"lm-gpu-{name}.lock", when_locked, should_stop, f"GPU {name}")


def choose_precision(name: PrecisionChoice, device: torch.device) -> Precision:
    """The precision. "auto" is bf16 on a GPU with bf16 units, and fp32 elsewhere."""
    if name != "auto":
        return name
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if gains else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context for a forward pass in a precision. Weights and losses stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def set_up(device: torch.device, config: TrainConfig) -> None:
    """Set TF32 and determinism for this process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
        torch.use_deterministic_algorithms(config.deterministic)


def wide_float(device: torch.device) -> torch.dtype:
    """The widest float type of the device, for sums over many steps."""
    return torch.float32 if device.type == "mps" else torch.float64


def peak_memory(device: torch.device) -> int:
    """The peak memory of this process on its device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(work: Callable[[], object]) -> bool:
    """True if ``work`` ran out of memory."""
    try:
        work()
    except (torch.OutOfMemoryError, MemoryError):
        return True
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error):
            return True
        raise
    return False
