"""One optimizer step: a batch, in micro-batches and over all ranks, gives a gradient and new weights.

A step does not wait for the device. Its figures (loss, tokens, whether it was skipped) are summed on the device until
``totals`` reads them.

Shapes: B blocks of a batch in this rank, T tokens in a block.
"""

import logging
import math
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from lmcore.dataset.loader import Batch
from lmcore.errors import ConfigError
from lmcore.model.device import autocast, choose_precision, out_of_memory, set_up, wide_float
from lmcore.model.evaluate import Scorer
from lmcore.model.loss import NextTokenLoss, compile_model, transformer_blocks
from lmcore.model.model import freeze_all_but, new_model
from lmcore.runs.run import Run
from lmcore.training.distributed import Ranks, full_tensor, no_sync, parallelize, unsharded
from lmcore.training.guard import Guard
from lmcore.training.optim import Optimizers

_OVERFLOWS = 20
"""Overflows in a row that do not count as bad in fp16. Each halves the scale, which begins at 2^16."""
_TOKENS_TO_MEASURE, _LONG = 256, 3.0
"""Most tokens of a block that are timed before the first step, and the seconds from which once is enough."""
_log = logging.getLogger(__name__)


class TrainStep:
    """The model of a run with its optimizers, loss scale, guard and scorer."""

    def __init__(self, run: Run, ranks: Ranks, device: torch.device, resumes: bool) -> None:
        self._config, self._dataset, self._ranks, self.device = run.config.train, run.config.dataset, ranks, device
        config = run.config.train
        self.precision = choose_precision(config.precision, device)
        set_up(device, config)
        self.model = new_model(run, resumes).to(device)
        freeze_all_but(self.model, config.trainable)
        loss = NextTokenLoss(self.model, config.loss_chunk_tokens)
        self.scorer = Scorer.from_run(run, loss)
        compile_model(loss, config.compile, device)
        self._micro_batch_size = config.micro_batch_size or -(-config.batch_size // ranks.world)
        if config.find_micro_batch:
            self._find_micro_batch(loss)
        self._loss = parallelize(loss, transformer_blocks(self.model), config, ranks)
        self.optimizers = Optimizers.from_config(self.model, config)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        torch.manual_seed(config.seed + ranks.rank)
        self.load({})

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state()`` returned; an empty ``state`` is that of a new run."""
        self.guard = Guard(self._config, self.device, state.get("guard"))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state["scaler"])
        self._overflows = torch.tensor(state.get("overflows", 0), device=self.device)
        self._totals = torch.tensor(state.get("found", [0.0] * 3), dtype=wide_float(self.device), device=self.device)

    def state(self) -> dict[str, Any]:
        """The state apart from weights and optimizers. Waits for the device."""
        return {
            "guard": self.guard.figures(),
            "scaler": self._scaler.state_dict(),
            "overflows": int(self._overflows),
            "found": self._totals.tolist(),
        }

    def tokens_since_totals(self) -> int:
        """Tokens of good steps since the last call of ``totals``. Waits for the device."""
        return int(self._totals[2])

    def totals(self) -> tuple[float, int]:
        """Mean loss (nats per token) and tokens of the good steps since the last call. Waits for the device.

        The loss is nan if there were none.
        """
        loss_sum, good_steps, tokens = self._totals.tolist()
        self._totals.zero_()
        return loss_sum / good_steps if good_steps else math.nan, int(tokens)

    def whole_model(self) -> AbstractContextManager[None]:
        """While the body runs, all ranks may call the model directly."""
        return unsharded(self._loss)

    def backward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradient; the mean loss in nats per token and the number of tokens, over all ranks.

        ``batch`` holds this rank's rows, on the device, and as ``tokens`` the number of their labels. The loss is the
        mean over the tokens of all ranks, however they fall to micro-batches. Of what a checkpoint holds, only the
        random state changes.
        """
        self._loss.train()
        tokens = self._ranks.sum(batch["tokens"].to(self._totals.dtype))
        # The backward pass averages gradients over ranks, and the sum is needed.
        weight = self._ranks.world / tokens.clamp(min=1).float()
        nats = torch.zeros((), device=self.device)
        rows = {f"{name}_BT": column for name, column in batch.items() if name != "tokens"}
        parts = zip(*(torch.split(column, self._micro_batch_size) for column in rows.values()), strict=True)
        micro_batches = [dict(zip(rows, part, strict=True)) for part in parts]
        for number, micro_batch in enumerate(micro_batches, start=1):
            with no_sync(self._loss, is_last=number == len(micro_batches)):
                with autocast(self.precision, self.device):
                    part_nats = self._loss(**micro_batch)
                self._scaler.scale(part_nats * weight).backward()
            nats += part_nats.detach()
        return self._ranks.sum(nats) / tokens.clamp(min=1), tokens

    def update(self, step: int, loss: torch.Tensor, tokens: torch.Tensor, rate: float) -> torch.Tensor:
        """Make optimizer step number ``step`` with learning rate ``rate``; return the gradient's norm before clipping.

        ``loss`` and ``tokens`` are what ``backward`` returned.
        """
        self.optimizers.set_learning_rate(rate)
        for optimizer in self.optimizers.parts if self._scaler.is_enabled() else []:
            self._scaler.unscale_(optimizer)
        limit = self._config.grad_clip or math.inf
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        # The loss scaler handles a few overflows in fp16, so they do not count as bad steps.
        overflows = self._scaler.is_enabled() & ~torch.isfinite(norm)
        self._overflows = torch.where(overflows, self._overflows + 1, 0)
        is_forgiven = overflows & (self._overflows <= _OVERFLOWS)
        skip = self.guard.skips(step, loss, torch.where(is_forgiven, 0, norm)) | overflows
        self.optimizers.step(skip)
        if self._scaler.is_enabled():
            self._scaler.update()
        self.model.zero_grad()
        figures = torch.stack([loss.to(self._totals.dtype), torch.ones_like(self._totals[0]), tokens])
        self._totals += torch.where(skip, 0, figures)
        return norm

    def guess_seconds(self) -> float | None:
        """An estimate of the seconds of a step, from part of a block; None on a GPU or with several processes.

        A step may take minutes, part of a block takes seconds. Weights and random state do not change.
        """
        if self.device.type != "cpu" or self._ranks.world > 1:
            return None
        seconds, tokens = 0.0, min(self._dataset.block_size, _TOKENS_TO_MEASURE)
        with torch.random.fork_rng([]):
            for _ in range(2):  # the first one also allocates
                begun = time.perf_counter()
                self._try(self._loss, 1, tokens)
                seconds = time.perf_counter() - begun
                if seconds > _LONG:
                    break
        self.model.zero_grad()
        return seconds * self._dataset.block_size / tokens * self._config.batch_size

    def _find_micro_batch(self, loss: NextTokenLoss) -> None:
        """Halve the micro-batch until a step, with the optimizer's state, fits into the memory of each rank.

        Each rank searches separately, before the model is parallelized. Weights and random state do not change. Raises
        ConfigError when one block does not fit.
        """
        if self._config.parallel == "fsdp" and self._ranks.world > 1:
            raise ConfigError("train.find_micro_batch does not support fsdp: set train.micro_batch_size")

        def attempt() -> None:
            moments = [torch.empty_like(p) for p in self.model.parameters() if p.requires_grad for _ in range(2)]
            self._try(loss, self._micro_batch_size, self._dataset.block_size)
            del moments  # Adam's; they only take memory

        loss.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            while self._micro_batch_size and out_of_memory(attempt):
                self._micro_batch_size //= 2
        self.model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._micro_batch_size = min(int(size) for size in self._ranks.gather(torch.tensor(self._micro_batch_size)))
        if not self._micro_batch_size:
            raise ConfigError(
                "one block does not fit into memory: lower dataset.block_size or the model's size, or set "
                "train.gradient_checkpointing"
            )
        _log.info("micro-batches of %d blocks", self._micro_batch_size)

    def _try(self, loss: torch.nn.Module, blocks: int, tokens: int) -> None:
        """Run forward and backward on blocks of zeros."""
        ids_BT = torch.zeros((blocks, tokens), dtype=torch.int64, device=self.device)
        documents_BT = ids_BT if self._dataset.document_masking else None
        with autocast(self.precision, self.device):
            nats = loss(ids_BT, ids_BT, documents_BT, documents_BT)
        nats.backward()
