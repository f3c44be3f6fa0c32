"""The device, its precision and memory, and a lock for each GPU.

Whatever computes on a GPU holds its lock: trainings, evaluations, samples. The locks are files of the machine, whoever
its users are, so a GPU computes for one of them at a time.
"""

import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from lmcore.errors import ConfigError, RunError, StoppedError
from lmcore.settings.config import TrainConfig
from lmcore.settings.training import DeviceChoice, Precision, PrecisionChoice
from lmcore.store.locks import locked

WhenLocked = Literal["wait", "refuse"]

GPU_LOCKS = Path("/tmp")
"""Every user may write there; tempfile's folder may be one of each user."""
_SECONDS_BETWEEN_TRIES = 0.1
_VISIBLE, _HELD = "CUDA_VISIBLE_DEVICES", "LM_HELD_GPUS"
"""The second is set for processes whose starter holds their GPUs."""
_ADVICE = "who sets when_locked to wait gets it when that ends"
_log = logging.getLogger(__name__)
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
    return torch.device("cuda", local_rank)


@contextmanager
def held_device(
    name: DeviceChoice, when_locked: WhenLocked = "wait", should_stop: Callable[[], bool] = lambda: False
) -> Iterator[torch.device]:
    """The named device for the body alone: of the GPUs the first that is free. A CPU is shared.

    Raises as ``held_gpus`` does.
    """
    device = choose_device(name)
    if device.type != "cuda":
        yield device
        return
    with held_gpus(1, when_locked, should_stop) as [number]:
        torch.cuda.set_device(number)
        try:
            yield torch.device("cuda", number)
        finally:
            torch.cuda.empty_cache()  # the next one needs the memory, and this process may go on for long


@contextmanager
def held_gpus(
    count: int, when_locked: WhenLocked, should_stop: Callable[[], bool], among: Sequence[int] = ()
) -> Iterator[list[int]]:
    """The numbers of the first ``count`` GPUs that are free, held while the body runs; ``among``: of these only.

    Whoever waits keeps what is free and has its turn until it has all, so two that need several never wait for each
    other. Raises ConfigError when there are fewer, RunError when they are in use and ``when_locked`` is "refuse",
    StoppedError when ``should_stop`` returns True.
    """
    among = among or range(torch.cuda.device_count())
    if count > len(among):
        raise ConfigError(f"train.nproc is {count}, and this machine has {len(among)} GPUs")
    numbers: list[int] = []
    turn = locked(GPU_LOCKS / "lm-gpu-turn.lock", "wait", should_stop, "the turn to take GPUs")
    with ExitStack() as held:
        with turn if when_locked == "wait" else nullcontext():
            busy = _take(held, numbers, count, among)
            if busy and when_locked == "refuse":
                raise busy
            if busy:
                _log.info("waiting: %s", busy)
            while busy := busy and _take(held, numbers, count, among):
                if should_stop():
                    raise StoppedError(f"stopped on request while {busy}")
                time.sleep(_SECONDS_BETWEEN_TRIES)
        yield sorted(numbers)


def _take(held: ExitStack, numbers: list[int], count: int, among: Sequence[int]) -> RunError | None:
    """Add free GPUs to ``numbers`` until there are ``count``. Returns who has the last one that is missing."""
    busy = None
    for number in among:
        if len(numbers) < count and number not in numbers:
            name = torch.cuda.get_device_properties(number).uuid
            try:
                held.enter_context(
                    locked(GPU_LOCKS / f"lm-gpu-{name}.lock", "refuse", what=f"GPU {name}", advice=_ADVICE)
                )
                numbers.append(number)
            except RunError as error:
                busy = error
    return busy if len(numbers) < count else None


@contextmanager
def gpus_of_workers(config: TrainConfig, when_locked: WhenLocked, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold a GPU for each of ``nproc`` processes that the body starts. They see no others. Raises as ``held_gpus``."""
    if choose_device(config.device).type != "cuda":
        yield
        return
    with held_gpus(config.nproc, when_locked, should_stop) as numbers:
        visible = os.environ.get(_VISIBLE) or ",".join(map(str, range(torch.cuda.device_count())))
        os.environ |= {_VISIBLE: ",".join(visible.split(",")[number] for number in numbers), _HELD: "1"}
        yield


@contextmanager
def device_of_worker(
    name: DeviceChoice, local_rank: int, when_locked: WhenLocked, should_stop: Callable[[], bool]
) -> Iterator[torch.device]:
    """The device of a process of torchrun. ``gpus_of_workers`` holds it, or without that the first rank here."""
    device, here = choose_device(name, local_rank), range(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    holds = device.type == "cuda" and local_rank == 0 and _HELD not in os.environ
    with held_gpus(len(here), when_locked, should_stop, here) if holds else nullcontext():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield device


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
