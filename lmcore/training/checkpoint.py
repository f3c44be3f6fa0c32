"""Checkpoints: the complete state of a training, from which it continues to equal results.

    checkpoints/step-00000500/  model.safetensors  optimizer.safetensors  random.safetensors  state.json  manifest.json

Each is an artifact (store/artifacts.py), without pickles. It holds full tensors, so the number of ranks may differ
between two starts. run.py chooses the checkpoint to use.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Module

from lmcore.model.model import Tensors, load_weights, model_tensors
from lmcore.runs.run import checkpoint_path, newest_first, step_of
from lmcore.store.artifacts import write_artifact
from lmcore.store.files import remove
from lmcore.store.json_files import from_json, json_bytes
from lmcore.training.distributed import Ranks, full_tensor
from lmcore.training.optim import Optimizers

SavedState = dict[str, Any]
"""The content of state.json: the fields of ``State``, and as "learner" what ``TrainStep.state`` returns."""


@dataclass
class EarlyStopping:
    """Counts validations in a row that did not lower the loss."""

    best_loss: float = float("inf")
    """Nats per token."""
    best_step: int = 0
    without_gain: int = 0

    def gains(self, step: int, loss: float, min_gain: float) -> bool:
        """True if a validation's loss is the lowest so far by at least ``min_gain``, which is then recorded."""
        if loss < self.best_loss - min_gain:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            return True
        self.without_gain += 1
        return False


@dataclass
class State:
    """The state of the loop; ``TrainStep.state`` has that of the step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Seconds in training steps."""
    row_seconds: float = 0.0
    """Seconds in the steps since the last log row."""
    row_waited: float = 0.0
    """Seconds of ``row_seconds`` spent waiting for data."""
    train_loss: float = math.nan
    validation_loss: float = math.nan
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    passed_over: int = 0
    """Blocks that a rollback left out."""
    interrupted_norm: float | None = None
    """Norm of the gradient of a step whose validation was interrupted and comes first; None: there is none."""

    @classmethod
    def from_saved(cls, saved: SavedState) -> "State":
        fields = {name: value for name, value in saved.items() if name != "learner"}
        return cls(**fields | {"early_stopping": EarlyStopping(**saved["early_stopping"])})


class CheckpointWriter:
    """Writes checkpoints of a training in a thread, one at a time, from copies in memory.

    The loop waits for the copy, not for the disk. After each checkpoint all others are removed, except the newest
    ``keep`` and those whose step ``is_kept`` accepts. All ranks take part, and the first one writes.
    """

    def __init__(self, folder: Path, keep: int, is_kept: Callable[[int], bool], ranks: Ranks) -> None:
        self._folder, self._keep, self._is_kept, self._ranks = folder, keep, is_kept, ranks
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Run the thread while the body runs. At the end all checkpoints are on disk, also after an exception."""
        with ThreadPoolExecutor(1, "checkpoint") as self._thread:
            yield
            self.wait()

    def save(
        self, step: int, model: Module, optimizers: Optimizers, state: SavedState, random: Tensors | None = None
    ) -> None:
        """Copy all that makes up the checkpoint of ``step``, and begin to write it.

        ``random`` is the random state after that step, if it is no longer the present one. Raises what the writing of
        the checkpoint before raised.
        """
        parts = {
            "model": _copied(model_tensors(model)),
            "optimizer": _copied(optimizers.tensors(model)),
            "random": random or random_state(self._ranks),
        }
        self.wait()
        if self._ranks.is_first and self._thread is not None:
            # Evaluated now: after the write, training may know a better step whose checkpoint is not written yet.
            kept = {other for other in (step, *map(step_of, newest_first(self._folder))) if self._is_kept(other)}
            self._writing = self._thread.submit(self._write, step, parts, {**state, "step": step}, kept)

    def wait(self) -> None:
        """Wait for the end of a write. Raises an exception that it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, parts: dict[str, Tensors], state: SavedState, kept: set[int]) -> None:
        with write_artifact(checkpoint_path(self._folder, step), lambda: {"kind": "checkpoint", "step": step}) as new:
            for name, tensors in parts.items():
                save_file(tensors, new / f"{name}.safetensors")
            (new / "state.json").write_bytes(json_bytes(state))
        for old in newest_first(self._folder)[self._keep :]:
            if step_of(old) not in kept:
                remove(old)


def load_checkpoint(path: Path, model: Module, optimizers: Optimizers, ranks: Ranks) -> SavedState:
    """The state in a checkpoint folder, after its tensors were restored into model, optimizers and random state."""
    load_weights(path, model)
    load_optimizers(path, model, optimizers)
    random, cpu, cuda = load_file(path / "random.safetensors"), f"cpu-{ranks.rank}", f"cuda-{ranks.rank}"
    # A rank that the checkpoint does not have keeps the random state of its seed.
    if cpu in random:
        torch.set_rng_state(random[cpu])
    if cuda in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random[cuda])
    state: SavedState = from_json((path / "state.json").read_bytes())
    return state


def load_optimizers(path: Path, model: Module, optimizers: Optimizers) -> None:
    """Restore the optimizers' state from a checkpoint folder. Raises StoreError when it does not fit."""
    optimizers.load(load_file(path / "optimizer.safetensors"), model)


def random_state(ranks: Ranks) -> Tensors:
    """The random states of all ranks, by device and rank: cpu-0, cuda-0, cpu-1 ..."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {f"{name}-{rank}": each for name, state in states.items() for rank, each in enumerate(ranks.gather(state))}


def _copied(tensors: Tensors) -> Tensors:
    """Copies of full tensors on the CPU."""
    return {name: full_tensor(tensor).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
