"""The training loop, from top to bottom.

``train`` continues a run from its newest checkpoint, or starts it, or returns at once what is finished. The
batches, the learning rate and the moments of validation are pure functions of the step, so on a CPU a run that was
interrupted anywhere ends with the same weights, to the last bit, as one that was not.

The CPU waits for the GPU at four places only: logging, validation, checkpoints and samples.

Shapes: B blocks in a batch, T tokens in a block.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmcore.clock import Clock, iso_timestamp
from lmcore.dataset.loader import Batch, loader, prefetch, to_device
from lmcore.dataset.mixture import open_blocks
from lmcore.dataset.stream import IGNORED_LABEL
from lmcore.dataset.tokenization import verify_chunks
from lmcore.errors import RunError, StoppedError, TrainingError
from lmcore.model.device import choose_device, device_locked, peak_memory
from lmcore.model.distributed import Ranks, process_group
from lmcore.model.evaluate import Validation
from lmcore.model.generate import write_samples
from lmcore.model.model import flops_per_token, parameter_count
from lmcore.runs.initial_model import init_checkpoint
from lmcore.runs.metrics import MetricsWriter
from lmcore.runs.run import (
    Run,
    TrainingResult,
    checkpoint_path,
    finished_training,
    newest_checkpoint,
    step_of,
    weights_hash,
)
from lmcore.runs.scores import Score
from lmcore.runs.training_progress import ProgressWriter, RecurringWork
from lmcore.signals import StopRequest, say_when_stopped
from lmcore.store.artifacts import find_artifact
from lmcore.store.locks import locked
from lmcore.training.checkpoint import CheckpointWriter, Tensors, load_checkpoint, load_optimizers, random_state
from lmcore.training.guard import EarlyStopping
from lmcore.training.schedule import Schedule, planned_steps
from lmcore.training.train_step import TrainStep

_log = logging.getLogger(__name__)


@dataclass
class State:
    """What a checkpoint says besides tensors and what the train_step says."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """In training steps."""
    row_seconds: float = 0.0
    """Of them since the last log row, and waiting for data of these."""
    row_waited: float = 0.0
    train_loss: float = math.nan
    validation_loss: float = math.nan
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    passed_over: int = 0
    """Blocks that a rollback left out."""


def train(run: Run, should_stop: Callable[[], bool] = lambda: False) -> TrainingResult:
    """Train ``run`` to its end.

    ``should_stop`` is asked after every step, and while another process trains the run or uses the GPU.

    Raises StoppedError after saving a checkpoint when ``should_stop`` said so or the time is up, TrainingError when
    more steps were bad than train.max_skipped, RunError when the run or its GPU is in use, StoreError when a shard is
    damaged (sizes are checked at every start, bytes once).
    """
    ranks, when_locked = Ranks.from_environment(), run.config.when_locked
    device = choose_device(run.config.train.device, ranks.local_rank)
    run_lock = locked(run.lock, when_locked, should_stop) if ranks.is_first else nullcontext()
    with run_lock, device_locked(device, when_locked, should_stop), process_group(ranks):
        finished = finished_training(run) if ranks.is_first else None
        if not ranks.any(finished is not None):
            _Training(run, ranks, device).run_to_end(should_stop)
            ranks.any(False)  # until the first one has written the result
        result = finished or TrainingResult.load(run.folder)
        if result is None:
            raise RunError(f"{run.folder / TrainingResult.file_name} is gone right after it was written")
        return result


class _OneTooManyError(TrainingError):
    """More steps were bad than are allowed."""


class _Training:
    """The parts of one training, put together; ``_train`` is the loop."""

    def __init__(self, run: Run, ranks: Ranks, device: torch.device) -> None:
        self.run, self.ranks, self.config = run, ranks, run.config.train
        if ranks.is_first:
            verify_chunks(run.dataset_folder)
        self.blocks = open_blocks(run.dataset_folder, run.config.dataset)
        shape = (len(self.blocks), run.config.dataset.block_size)
        self.total_steps = planned_steps(self.config, *shape)
        self.schedule = Schedule.from_config(self.config, self.total_steps, *shape)
        newest = self._newest_checkpoint()
        self.train_step = TrainStep(run, ranks, device, resumes=newest is not None)
        self.flops_per_token = flops_per_token(self.train_step.model, run.config.dataset.block_size)
        self.validation = Validation.from_run(run, self.train_step.model, ranks)
        self.checkpoints = CheckpointWriter(run.checkpoints, self.config.keep_checkpoints, self._is_kept, ranks)
        self.state = self._resume(newest)
        self.metrics = self._open_metrics() if ranks.is_first else None
        self.told = self.train_step.guard.standing().bad
        self.clock = Clock()
        self.progress = self._open_progress()
        _log.info(
            "%s: %s parameters on %s in %s, step %d of %d, %d blocks an epoch",
            run.folder.name,
            f"{parameter_count(self.train_step.model):,}",
            self.train_step.device,
            self.train_step.precision,
            self.state.step,
            self.total_steps,
            len(self.blocks),
        )

    def _open_metrics(self, keep_events: bool = False) -> MetricsWriter:
        tensorboard = self.run.tensorboard if self.config.tensorboard else None
        return MetricsWriter(self.run.metrics, self.state.step, tensorboard, keep_events)

    def _open_progress(self) -> ProgressWriter:
        config, block_size = self.config, self.run.config.dataset.block_size
        step_tokens = config.batch_size * block_size
        epoch_steps = max(1, len(self.blocks) // config.batch_size)
        recurring = {
            # A forward pass is a third of a step, token by token.
            "validation": RecurringWork(
                min(self._steps_between_validations(), epoch_steps), self.validation.tokens / 3 / step_tokens
            ),
            "checkpoint": RecurringWork(config.checkpoint_every),
            "samples": RecurringWork(self.run.config.sample.every),
        }
        return ProgressWriter(
            self.run.progress if self.ranks.is_first else None,
            self.total_steps,
            recurring,
            self.flops_per_token * step_tokens,
            self.train_step.device.type,
        )

    def _newest_checkpoint(self) -> Path | None:
        """As the first rank finds it."""
        newest = newest_checkpoint(self.run.checkpoints) if self.ranks.is_first else None
        step = int(self.ranks.sum(torch.tensor(step_of(newest) if newest else 0)))
        return self._checkpoint(step) if step else None

    def _resume(self, newest: Path | None) -> State:
        """Put everything where a checkpoint says, or at the beginning."""
        if newest is not None:
            saved = load_checkpoint(newest, self.train_step.model, self.train_step.optimizers, self.ranks)
            self.train_step.load(saved.pop("learner"))
            return State(**{**saved, "early_stopping": EarlyStopping(**saved["early_stopping"])})
        if self.config.init_optimizer:
            load_optimizers(init_checkpoint(self.config.init_from), self.train_step.model, self.train_step.optimizers)
        return State()

    def run_to_end(self, should_stop: Callable[[], bool]) -> None:
        """Train, with at most one rollback, and write the result."""
        with self.checkpoints.open():
            try:
                self._train(should_stop)
            except _OneTooManyError as error:
                self._roll_back(error)
                self._train(should_stop)
        if self.ranks.is_first:
            self._write_result()

    def _train(self, should_stop: Callable[[], bool]) -> None:
        state, config, train_step = self.state, self.config, self.train_step
        if self._gains_no_more():
            return
        self.progress.begin(state.step, None)  # a block of the guess may take seconds
        self.progress.begin(state.step, train_step.guess_seconds(self.run.config.dataset))
        self.clock.lap()
        for batch in self.clock.waiting_for(self._batches()):
            rate = self.schedule.rate(state.step)
            with self._stoppable(should_stop):
                loss, tokens = train_step.backward(batch)
            norm = train_step.update(state.step + 1, loss, tokens, rate)
            state.step += 1

            is_last = state.step == self.total_steps
            is_logged = state.step % config.log_every == 0 or is_last
            is_validated = self._is_validation_step()
            is_saved = state.step % config.checkpoint_every == 0 or state.step == self.schedule.decay_start
            if is_logged or is_validated or train_step.device.type == "cpu":
                self._check_guard()
            if is_logged:
                self._log(rate, norm)
            if is_logged or train_step.device.type == "cpu":  # elsewhere the step is still being computed
                self.progress.reached(state.step)
            if is_validated:
                is_saved |= self._validate()
            if self.run.config.sample.every and state.step % self.run.config.sample.every == 0:
                self._write_samples()
            if self._gains_no_more() and not is_last:
                is_last = True
                self._log(rate, norm)
            is_stopping = not is_last and self.ranks.any(should_stop() or self._is_time_up())
            if is_saved or is_last or is_stopping:
                self._save()
            if is_stopping:
                self._stop()
            if is_last:
                return

    @contextmanager
    def _stoppable(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """A step of a large model on a CPU takes minutes: a signal meanwhile saves what the steps before it made."""
        if not isinstance(should_stop, StopRequest):
            yield
            return
        can_save = self.train_step.device.type == "cpu" and self.ranks.world == 1
        random = random_state(self.ranks) if can_save else None

        def save() -> None:
            self._pause()
            self.checkpoints.wait()
            if not self._checkpoint(self.state.step).exists():
                self._begin_save(random)
                self.checkpoints.wait()
            say_when_stopped(self._why_stopped())

        with should_stop.unchanged(save, can_save):
            yield

    def _batches(self) -> Iterator[Batch]:
        """Batches on the device, from the next step on.

        On a GPU they are made in a thread while it computes. On a CPU a batch costs 0.1 ms of a step of 200, and
        training with the thread was as fast as without (measured on two cores).
        """
        size, dataset, device = self.config.batch_size, self.run.config.dataset, self.train_step.device
        batches = loader(
            self.blocks,
            size,
            first_block=self.state.step * size + self.state.passed_over,
            last_block=self._last_block() + self.state.passed_over,
            seed=self.config.seed,
            shuffle=dataset.shuffle,
            document_ids=dataset.document_masking,
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        counted = ({**batch, "tokens": (batch["labels"] != IGNORED_LABEL).sum()} for batch in batches)
        ready = (to_device(batch, device) for batch in counted)
        return prefetch(ready) if device.type == "cuda" else ready

    def _gains_no_more(self) -> bool:
        return 0 < self.config.patience <= self.state.early_stopping.without_gain

    def _last_block(self) -> int:
        """Where training ends; a run of whole epochs may end with a short batch."""
        if self.config.max_steps or self.config.max_tokens:
            return self.total_steps * self.config.batch_size
        return math.ceil(self.config.epochs * len(self.blocks))

    def _is_validation_step(self) -> bool:
        """Every validate_every steps, at the end of each epoch, and at the last step."""
        step, size, blocks = self.state.step, self.config.batch_size, len(self.blocks)
        every = self._steps_between_validations()
        ends_epoch = step * size // blocks > (step - 1) * size // blocks
        return step % every == 0 or ends_epoch or step == self.total_steps

    def _steps_between_validations(self) -> int:
        return self.config.validate_every or max(1, self.total_steps // 10)

    def _check_guard(self) -> None:
        """Tell of steps that were skipped; raise _OneTooManyError when they were too many."""
        standing = self.train_step.guard.standing()
        new, self.told = standing.bad - self.told, standing.bad
        for step in standing.steps[max(0, len(standing.steps) - new) :]:
            self._event(f"step {step} was skipped", documents=self._documents_of(step))
        if standing.is_over:
            raise _OneTooManyError(
                f"step {standing.steps[-1]} has loss {standing.loss:.4g} and gradient norm {standing.norm:.4g}, and "
                f"{self.config.max_skipped} bad steps are allowed (train.max_skipped). Its documents stand in "
                f"{self.run.metrics}. Lower train.learning_rate (now {self.config.learning_rate}) or clip harder "
                "(train.grad_clip), then start with --fresh"
            )

    def _documents_of(self, step: int) -> list[str]:
        """Hashes of the documents that a step learns from."""
        first = self.state.passed_over + (step - 1) * self.config.batch_size
        positions = np.arange(first, first + self.config.batch_size)
        shuffle = self.run.config.dataset.shuffle
        return [f"{name:016x}" for name in self.blocks.document_hashes(positions, self.config.seed, shuffle)]

    def _roll_back(self, error: TrainingError) -> None:
        """Go back to the newest checkpoint, once, and pass over the blocks since; else raise ``error``."""
        reached, passed_over = self.state.step, self.state.passed_over
        self.checkpoints.wait()
        newest = self._newest_checkpoint()
        if not self.config.rollback or passed_over or newest is None:
            raise error
        self.state = self._resume(newest)
        self.state.passed_over = passed_over + (reached - self.state.step) * self.config.batch_size
        self.told = self.train_step.guard.standing().bad
        self.clock.lap()
        if self.metrics is not None:
            self.metrics = self._open_metrics(keep_events=True)
        self._event(f"rolled back from step {reached} to {self.state.step}: {error}")

    def _log(self, rate: float, norm: torch.Tensor) -> None:
        """Waits for the device."""
        state, found = self.state, self.train_step.totals()
        self._pause()
        seconds, waited = state.row_seconds, state.row_waited
        state.row_seconds = state.row_waited = 0.0
        state.tokens += found.tokens
        if not found.good_steps:
            return
        state.train_loss = found.loss_sum / found.good_steps
        speed = found.tokens / seconds
        figures = {
            "loss": state.train_loss,
            "learning_rate": rate,
            "gradient_norm": norm.item(),
            "tokens_per_second": speed,
            "memory_bytes": peak_memory(self.train_step.device),
            "data_wait_share": waited / seconds,
            "skipped": self.told,
        }
        if self.config.peak_tflops:
            figures["mfu"] = speed * self.flops_per_token / (self.config.peak_tflops * 1e12 * self.ranks.world)
        self._write("train", **figures)

    def _validate(self) -> bool:
        """Score the validation documents; True if that gave the best loss so far."""
        state = self.state
        self._pause()
        with self.progress.phase("validation", state.step), self.train_step.whole_model():
            scores = self.validation()
        score = sum(scores.values(), Score())
        if not math.isfinite(score.nats_per_token):
            raise TrainingError(
                f"the validation loss is {score.nats_per_token} after step {state.step}: lower train.learning_rate "
                f"(now {self.config.learning_rate}) or clip harder (train.grad_clip), then start with --fresh"
            )
        state.validation_loss = score.nats_per_token
        figures: dict[str, Any] = {"loss": score.nats_per_token, "bits_per_byte": score.bits_per_byte}
        if len(scores) > 1:
            figures["sources"] = {name: each.nats_per_token for name, each in scores.items()}
        self._write("validation", **figures)
        self.clock.lap()
        return state.early_stopping.gains(state.step, score.nats_per_token, self.config.min_gain)

    def _write_samples(self) -> None:
        self._pause()
        with self.progress.phase("samples", self.state.step), self.train_step.whole_model():
            write_samples(self.run, self.train_step.model, self.state.step, self.metrics)
        self.clock.lap()

    def _save(self) -> None:
        self._check_guard()  # nothing after one bad step too many is worth going back to
        self._pause()
        with self.progress.phase("checkpoint", self.state.step):
            self._begin_save()
        self.clock.lap()

    def _begin_save(self, random: Tensors | None = None) -> None:
        state = {**asdict(self.state), "learner": self.train_step.state()}
        self.checkpoints.save(self.state.step, self.train_step.model, self.train_step.optimizers, state, random)

    def _pause(self) -> None:
        """Count the time until now as training; what follows is something else, up to the next lap."""
        seconds, waited = self.clock.lap()
        self.state.seconds += seconds
        self.state.row_seconds += seconds
        self.state.row_waited += waited

    def _is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step stays, however old."""
        every = self.config.keep_every
        return step in (self.state.early_stopping.best_step, self.schedule.decay_start) or bool(
            every and not step % every
        )

    def _is_time_up(self) -> bool:
        return 0 < self.config.max_minutes <= self.clock.minutes()

    def _stop(self) -> None:
        self.checkpoints.wait()
        self.ranks.any(False)  # until the first one has written it
        raise StoppedError(self._why_stopped())

    def _why_stopped(self) -> str:
        why = f"after {self.config.max_minutes:g} minutes" if self._is_time_up() else "on request"
        return (
            f"training stopped {why} after step {self.state.step} of {self.total_steps}, checkpoint saved: "
            "the same command continues"
        )

    def _write(self, kind: str, **figures: Any) -> None:
        step, size = self.state.step, self.config.batch_size
        row = {
            "kind": kind,
            "step": step,
            "total_steps": self.total_steps,
            "tokens": self.state.tokens + self.train_step.tokens_since_totals(),
            "epoch": min(step * size, self._last_block()) / len(self.blocks),
        }
        if self.metrics is not None:
            self.metrics.write({**row, **figures})

    def _event(self, text: str, **figures: Any) -> None:
        _log.warning("%s", text)
        self._write("event", text=text, **figures)

    def _write_result(self) -> None:
        state, model = self.state, self.train_step.model
        if math.isnan(state.train_loss):
            raise TrainingError(
                f"none of {state.step} steps had a finite gradient, so nothing was learnt: lower train.learning_rate "
                f"(now {self.config.learning_rate}), or use another train.precision, and start with --fresh"
            )
        best = state.early_stopping
        has_best = self.config.patience and find_artifact(self._checkpoint(best.best_step), keep_damaged=True)
        step = best.best_step if has_best else state.step
        trunk = self._checkpoint(self.schedule.decay_start) if self.schedule.decay_start is not None else None
        TrainingResult(
            run=self.run.folder.name,
            folder=self.run.folder,
            step=step,
            last_step=state.step,
            tokens=state.tokens,
            train_loss=state.train_loss,
            validation_loss=state.validation_loss if step == state.step else best.best_loss,
            tokens_per_second=state.tokens / state.seconds,
            skipped_steps=self.told,
            weights=weights_hash(self._checkpoint(step)),
            parameters=parameter_count(model),
            trainable_parameters=parameter_count(model, trainable_only=True),
            flops_per_token=self.flops_per_token,
            device=str(self.train_step.device),
            precision=self.train_step.precision,
            seconds=state.seconds,
            ended=iso_timestamp(),
            trunk=trunk if trunk is not None and find_artifact(trunk, keep_damaged=True) else None,
        ).save()

    def _checkpoint(self, step: int) -> Path:
        return checkpoint_path(self.run.checkpoints, step)
