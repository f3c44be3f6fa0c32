"""Several processes that train one model: who is who, sums over all of them, and how the model is spread.

torchrun starts the processes (``launch.py``, or by hand on several machines) and says in the environment who each one
is. Without it there is one, and everything here does nothing, whatever RANK and WORLD_SIZE say.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lmcore.errors import ConfigError, TrainingError
from lmcore.settings.config import TrainConfig

_log = logging.getLogger(__name__)
_SECONDS_TO_MEET = 300
_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Among those on this machine; the number of its GPU."""

    @classmethod
    def from_environment(cls) -> Self:
        """As torchrun says; alone where it did not start this process."""
        if not is_worker():
            return cls()
        return cls(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on all ranks if it is on one. Goes from CPU to CPU: no GPU is waited for."""
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The CPU tensors of all ranks, of one shape."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor)
        return parts


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Take part in the group of all ranks while the body runs."""
    if ranks.world == 1:
        yield
        return
    _meet(ranks)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _meet(ranks: Ranks) -> None:
    """Wait for all ranks. Raises TrainingError when one does not come, or their meeting point cannot be reached."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    _log.info("waiting at most %d s for all %d processes at %s", _SECONDS_TO_MEET, ranks.world, place)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=_SECONDS_TO_MEET)))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (distributed.DistError, ValueError) as error:
        raise TrainingError(
            f"not all of {ranks.world} processes met at {place} within {_SECONDS_TO_MEET} s: {error}. Do all machines "
            "run the same torchrun command, and does each reach that address?"
        ) from error


def parallelize(module: torch.nn.Module, blocks: list[torch.nn.Module], config: TrainConfig, ranks: Ranks) -> Any:
    """``module`` so that its backward pass averages gradients over all ranks.

    With ddp a wrapper; with fsdp the module itself, each of its transformer blocks sharded apart
    (fully_shard, arXiv 2304.11277).
    """
    if ranks.world == 1:
        return module
    if config.parallel == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    if config.precision == "fp16":
        raise ConfigError("train.parallel fsdp does not go with fp16, whose scale every rank keeps: use bf16")
    for block in blocks:
        fully_shard(block)
    return fully_shard(module)


def no_sync(module: Any, is_last: bool) -> AbstractContextManager[Any]:
    """Gradients of micro-batches add up in each rank; only those of the last one go round."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if is_last else module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    return nullcontext()


@contextmanager
def unsharded(module: Any) -> Iterator[None]:
    """While the body runs, parts of ``module`` may be called by themselves, its transformer blocks as ever one by one.

    All ranks must do so, and call the same.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which ranks may hold shares; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``tensor``, the same on all ranks, on the device of ``target`` and shared out as it is."""
    tensor = tensor.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(tensor, target.device_mesh, target.placements)
    return tensor


def is_worker() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ
