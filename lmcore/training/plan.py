"""What a training does at which step: pure functions of the step, so that a run that resumes does the same."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lmcore.dataset.loader import Batch, loader, prefetch, to_device
from lmcore.dataset.mixture import Mixture, open_blocks
from lmcore.dataset.stream import IGNORED_LABEL
from lmcore.runs.run import Run
from lmcore.runs.training_progress import RecurringWork
from lmcore.settings.config import RunConfig
from lmcore.training.distributed import Ranks
from lmcore.training.schedule import Schedule, planned_steps


@dataclass(frozen=True)
class Plan:
    """The steps of one run, its schedule and its batches."""

    config: RunConfig
    blocks: Mixture
    total_steps: int
    schedule: Schedule

    @classmethod
    def from_run(cls, run: Run) -> "Plan":
        """The plan that the settings of a run ask for. Raises ConfigError when the schedule does not fit."""
        train, dataset = run.config.train, run.config.dataset
        blocks = open_blocks(run.dataset_folder, dataset)
        steps = planned_steps(train, len(blocks), dataset.block_size)
        return cls(run.config, blocks, steps, Schedule.from_config(train, steps, len(blocks), dataset.block_size))

    @property
    def step_tokens(self) -> int:
        """Tokens in the blocks of a step."""
        return self.config.train.batch_size * self.config.dataset.block_size

    @property
    def last_block(self) -> int:
        """The block after the last one. A run of whole epochs may end with a short batch."""
        train = self.config.train
        if train.max_steps or train.max_tokens:
            return self.total_steps * train.batch_size
        return math.ceil(train.epochs * len(self.blocks))

    def epoch(self, step: int) -> float:
        """Epochs that are done after ``step`` steps."""
        return min(step * self.config.train.batch_size, self.last_block) / len(self.blocks)

    def is_logged(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.total_steps

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.config.train.validate_every or max(1, self.total_steps // 10)

    def is_validated(self, step: int) -> bool:
        """True every ``validate_every`` steps, at the end of each epoch, and at the last step."""
        size, blocks = self.config.train.batch_size, len(self.blocks)
        ends_epoch = step * size // blocks > (step - 1) * size // blocks
        return step % self.validate_every == 0 or ends_epoch or step == self.total_steps

    def is_sampled(self, step: int) -> bool:
        return bool(self.config.sample.every) and step % self.config.sample.every == 0

    def is_saved(self, step: int) -> bool:
        """True where a checkpoint is written, whatever the losses."""
        return step % self.config.train.checkpoint_every == 0 or step == self.schedule.decay_start

    def is_kept(self, step: int) -> bool:
        """True where the checkpoint stays, however old."""
        every = self.config.train.keep_every
        return step == self.schedule.decay_start or bool(every and step % every == 0)

    def recurring_work(self, validation_tokens: int) -> dict[str, RecurringWork]:
        """What comes at regular steps, by its phase. A validation scores ``validation_tokens``."""
        train, epoch_steps = self.config.train, max(1, len(self.blocks) // self.config.train.batch_size)
        return {
            # A forward pass is a third of a step, token by token.
            "validation": RecurringWork(
                min(self.validate_every, epoch_steps), validation_tokens / 3 / self.step_tokens
            ),
            "checkpoint": RecurringWork(train.checkpoint_every),
            "samples": RecurringWork(self.config.sample.every),
        }

    def document_hashes(self, step: int, passed_over: int) -> list[str]:
        """Hashes of the documents in the blocks of step ``step``, counted from 1."""
        size = self.config.train.batch_size
        positions = np.arange(size) + passed_over + (step - 1) * size
        found = self.blocks.document_hashes(positions, self.config.train.seed, self.config.dataset.shuffle)
        return [f"{name:016x}" for name in found]

    def batches(self, step: int, passed_over: int, ranks: Ranks, device: torch.device) -> Iterator[Batch]:
        """Batches on the device, after ``step`` steps and ``passed_over`` blocks that a rollback left out.

        On a GPU they are made in a thread while it computes. On a CPU a batch costs 0.1 ms of a step of 200, and
        training with the thread was as fast as without (measured on two cores).
        """
        size, dataset = self.config.train.batch_size, self.config.dataset
        batches = loader(
            self.blocks,
            size,
            first_block=step * size + passed_over,
            last_block=self.last_block + passed_over,
            seed=self.config.train.seed,
            shuffle=dataset.shuffle,
            document_ids=dataset.document_masking,
            rank=ranks.rank,
            world=ranks.world,
        )
        counted = ({**batch, "tokens": (batch["labels"] != IGNORED_LABEL).sum()} for batch in batches)
        ready = (to_device(batch, device) for batch in counted)
        return prefetch(ready) if device.type == "cuda" else ready
