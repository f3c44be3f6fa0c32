"""Training of one model by several processes: torchrun's agent, ranks, reductions over ranks, and DDP or FSDP.

torchrun starts the processes (``run_workers``, or a person on several machines) and sets the rank of each in the
environment. Without torchrun there is one process, whatever RANK and WORLD_SIZE are, and nothing here has an effect.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lmcore.errors import SIGNALLED_STATUS, STOPPED_STATUS, ConfigError, TrainingError
from lmcore.model.device import gpus_of_workers
from lmcore.runs.run import Run, finished_training
from lmcore.settings.config import TrainConfig

_log = logging.getLogger(__name__)
_SECONDS_TO_MEET = 300


# --- processes ---


def run_workers(run: Run, should_stop: Callable[[], bool]) -> int:
    """The exit status of the workers that train the run; this process is torchrun's agent until all have ended.

    ``should_stop`` is asked while other processes use the GPUs. A stop request to one worker stops all. When a worker
    is killed the others end, and the status names the signal.
    """
    # The agent needs seconds to load, and other processes do without it.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    nproc = run.config.train.nproc
    for name in ("elastic", "run"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)  # the workers log what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # Otherwise the workers connect to this machine's host name, which some machines cannot resolve.
    agent = ["--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={nproc}"]
    arguments = get_args_parser().parse_args([*agent, "-m", "lmcore", "train", str(run.folder)])
    try:
        with gpus_of_workers(run.config.train, run.config.when_locked, should_stop):
            torchrun(arguments)  # type: ignore[no-untyped-call]
    except SignalException:
        return STOPPED_STATUS
    except ChildFailedError as error:
        return _status(run, {failure.exitcode for failure in error.failures.values()})
    return 0


def _status(run: Run, statuses: set[int]) -> int:
    """The status that says most: what one worker does ends the others, by SIGTERM or with an abort in gloo."""
    if finished_training(run) is not None:
        return 0
    found = {SIGNALLED_STATUS - status if status < 0 else status for status in statuses}
    for status in (SIGNALLED_STATUS + signal.SIGKILL, STOPPED_STATUS):
        if status in found:
            return status
    return max(found - {SIGNALLED_STATUS + signal.SIGTERM} or found)


def is_worker() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Rank on this machine, which is the number of its GPU."""

    @classmethod
    def from_environment(cls) -> Self:
        """The ranks that torchrun set; a single rank where it did not start this process."""
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))) if is_worker() else cls()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on all ranks if ``flag`` is True on one. Communicates between CPUs, so it waits for no GPU."""
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks; they are on the CPU and have one shape."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor)
        return parts


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Join the process group of all ranks while the body runs. Raises TrainingError when a rank does not join."""
    if ranks.world == 1:
        yield
        return
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    _log.info("waiting at most %d s for all %d processes at %s", _SECONDS_TO_MEET, ranks.world, place)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=_SECONDS_TO_MEET)))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (distributed.DistError, ValueError) as error:
        raise TrainingError(
            f"not all of {ranks.world} processes connected to {place} within {_SECONDS_TO_MEET} s: {error}. Check "
            "that all machines run the same torchrun command and can reach that address"
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


# --- modules and tensors ---


def parallelize(module: torch.nn.Module, blocks: list[torch.nn.Module], config: TrainConfig, ranks: Ranks) -> Any:
    """``module`` with a backward pass that averages gradients over all ranks.

    ddp returns a wrapper. fsdp returns the module itself, and shards each transformer block separately (fully_shard,
    arXiv 2304.11277). Raises ConfigError for fsdp in fp16.
    """
    if ranks.world == 1:
        return module
    if config.parallel == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    if config.precision == "fp16":
        raise ConfigError("train.parallel fsdp does not support fp16, since each rank has its own loss scale: use bf16")
    for block in blocks:
        fully_shard(block)
    return fully_shard(module)


def no_sync(module: Any, is_last: bool) -> AbstractContextManager[Any]:
    """The context for a micro-batch's backward pass: ranks synchronize gradients only in the last one."""
    if isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    return nullcontext()


@contextmanager
def unsharded(module: Any) -> Iterator[None]:
    """While the body runs, submodules of an fsdp ``module`` may be called directly, with equal calls on all ranks."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded over ranks. Every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
