"""The training loop, from top to bottom.

``train`` starts a run, continues it from its newest checkpoint, or returns the result of a finished one. Batches,
learning rate and validations are pure functions of the step (plan.py), so on a CPU an interrupted run ends with weights
that are bit-equal to those of an uninterrupted one.

This file is long so that the order of events is read in one place.

The CPU waits for the GPU in four places: logging, validation, checkpoints and samples.

Shapes: B blocks in a batch, T tokens in a block.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from lmcore.clock import Clock, iso_timestamp
from lmcore.dataset.manifest import verify_chunks
from lmcore.errors import StoppedError, TrainingError
from lmcore.model.device import device_of_worker, held_device, peak_memory
from lmcore.model.generate import write_samples
from lmcore.model.model import Tensors, flops_per_token, parameter_count
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.metrics import MetricsWriter
from lmcore.runs.run import (
    Run,
    TrainingResult,
    checkpoint_path,
    finished_training,
    newest_checkpoint,
    step_of,
    weights_hash,
    whole_checkpoint,
)
from lmcore.runs.scores import Score
from lmcore.runs.training_progress import ProgressWriter
from lmcore.signals import StopRequest, say_when_stopped
from lmcore.store.locks import locked
from lmcore.training.checkpoint import CheckpointWriter, State, load_checkpoint, load_optimizers, random_state
from lmcore.training.distributed import Ranks, process_group
from lmcore.training.plan import Plan
from lmcore.training.train_step import TrainStep
from lmcore.training.validation import Validation, ValidationStoppedError

_log = logging.getLogger(__name__)


def train(run: Run, should_stop: Callable[[], bool] = lambda: False) -> TrainingResult:
    """Train ``run`` to its end.

    ``should_stop`` is called after each step, and while another process trains the run or uses the GPU.

    Raises StoppedError, after saving a checkpoint, when ``should_stop`` returns True or train.max_minutes have passed;
    TrainingError when more steps were bad than train.max_skipped; RunError when the run or its GPU is in use;
    StoreError when a shard is damaged (sizes are checked at each start, bytes once).
    """
    ranks, when_locked = Ranks.from_environment(), run.config.when_locked
    run_lock = locked(run.lock, when_locked, should_stop) if ranks.is_first else nullcontext()
    name = run.config.train.device
    own = held_device(name, when_locked, should_stop)
    held = device_of_worker(name, ranks.local_rank, when_locked, should_stop) if ranks.world > 1 else own
    with run_lock, held as device, process_group(ranks):
        finished = finished_training(run) if ranks.is_first else None
        if not ranks.any(finished is not None):
            _Training(run, ranks, device).run_to_end(should_stop)
            ranks.any(False)  # until the first one has written the result
        result = finished or TrainingResult.load(run.folder)
        assert result is not None  # the first rank has just written it
        return result


class _OneTooManyError(TrainingError):
    """More steps were bad than train.max_skipped allows."""


class _Training:
    """The parts of one training. ``_train`` is the loop."""

    def __init__(self, run: Run, ranks: Ranks, device: torch.device) -> None:
        self.run, self.ranks, self.config = run, ranks, run.config.train
        if ranks.is_first:
            verify_chunks(run.dataset_folder)
        self.plan = Plan.from_run(run)
        newest = self._newest_checkpoint()
        self.train_step = TrainStep(run, ranks, device, resumes=newest is not None)
        self.flops_per_token = flops_per_token(self.train_step.model, run.config.dataset.block_size)
        self.validation = Validation(run, self.train_step.scorer, ranks)
        self.state = self._resume(newest)
        self.checkpoints = CheckpointWriter(
            run.checkpoints,
            self.config.keep_checkpoints,
            is_kept=lambda step: step == self.state.early_stopping.best_step or self.plan.is_kept(step),
            ranks=ranks,
        )
        self.metrics = self._open_metrics()
        self.skipped_steps = self.train_step.guard.standing().bad
        self.clock = Clock()
        work, path = self.plan.recurring_work(self.validation.tokens), run.progress if ranks.is_first else None
        self.progress = ProgressWriter(path, self.plan.total_steps, work, device.type)
        step, parameters = self.train_step, f"{parameter_count(self.train_step.model):,} parameters"
        steps = f"step {self.state.step} of {self.plan.total_steps}, {len(self.plan.blocks)} blocks an epoch"
        _log.info("%s: %s on %s in %s, %s", run.folder.name, parameters, step.device, step.precision, steps)

    def _newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint that the first rank finds."""
        newest = newest_checkpoint(self.run.checkpoints) if self.ranks.is_first else None
        step = int(self.ranks.sum(torch.tensor(step_of(newest) if newest else 0)))
        return self._checkpoint(step) if step else None

    def _resume(self, newest: Path | None) -> State:
        """The state of a checkpoint, after it was restored; without one that of a new run."""
        if newest is not None:
            saved = load_checkpoint(newest, self.train_step.model, self.train_step.optimizers, self.ranks)
            self.train_step.load(saved["learner"])
            return State.from_saved(saved)
        if self.config.init_optimizer:
            initial = InitialModel.find(self.config.init_from)
            load_optimizers(initial.optimizer_folder(), self.train_step.model, self.train_step.optimizers)
        return State()

    def _open_metrics(self, keep_events: bool = False) -> MetricsWriter | None:
        """The writer of rows after the present step, which drops those of later steps; None in other ranks."""
        if not self.ranks.is_first:
            return None
        tensorboard = self.run.folder / "tensorboard" if self.config.tensorboard else None
        is_validated = self.state.interrupted_norm is None
        return MetricsWriter(self.run.metrics, self.state.step, tensorboard, keep_events, is_validated)

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
        state, plan, train_step = self.state, self.plan, self.train_step
        if self._gains_no_more():
            return
        self.progress.begin(state.step, None)  # the estimate may take seconds
        self.progress.begin(state.step, train_step.guess_seconds())
        self.clock.lap()
        if state.interrupted_norm is not None and self._end_step(state.interrupted_norm, should_stop):
            return
        for batch in self.clock.waiting_for(plan.batches(state.step, state.passed_over, self.ranks, train_step.device)):
            with self._stoppable(should_stop):
                loss, tokens = train_step.backward(batch)
            norm = train_step.update(state.step + 1, loss, tokens, plan.schedule.rate(state.step))
            state.step += 1

            is_logged, on_cpu = plan.is_logged(state.step), train_step.device.type == "cpu"
            if is_logged or plan.is_validated(state.step) or on_cpu:
                self._check_guard()
            if is_logged:
                self._log(norm)
            if is_logged or on_cpu:  # elsewhere the step is still being computed
                self.progress.reached(state.step)
            if self._end_step(norm, should_stop):
                return

    def _end_step(self, norm: torch.Tensor | float, should_stop: Callable[[], bool]) -> bool:
        """Validate, sample and save, where this step does; True if the training is over. ``norm`` is of its gradient.

        A stop during the validation saves the step as interrupted. The next start comes here first.
        """
        state, plan = self.state, self.plan
        is_last, is_saved, state.interrupted_norm = state.step == plan.total_steps, plan.is_saved(state.step), None
        try:
            if plan.is_validated(state.step):
                is_saved |= self._validate(should_stop)
        except ValidationStoppedError:
            state.interrupted_norm = float(norm)
            self._stop()
        if plan.is_sampled(state.step):
            self._write_samples()
        if self._gains_no_more() and not is_last:
            is_last = True
            self._log(norm)
        if not is_last and self.ranks.any(should_stop() or self._is_time_up()):
            self._stop()
        if is_saved or is_last:
            self._save()
        return is_last

    def _stop(self) -> NoReturn:
        """Save, and raise StoppedError."""
        self._save()
        self.checkpoints.wait()
        self.ranks.any(False)  # until the first one has written it
        raise StoppedError(self._why_stopped())

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

    def _gains_no_more(self) -> bool:
        return 0 < self.config.patience <= self.state.early_stopping.without_gain

    def _check_guard(self) -> None:
        """Record skipped steps. Raises _OneTooManyError when they are too many."""
        standing = self.train_step.guard.standing()
        new, self.skipped_steps = standing.bad - self.skipped_steps, standing.bad
        for step in standing.steps[max(0, len(standing.steps) - new) :]:
            self._event(f"step {step} was skipped", documents=self.plan.document_hashes(step, self.state.passed_over))
        if standing.is_over:
            raise _OneTooManyError(
                f"step {standing.steps[-1]} has loss {standing.loss:.4g} and gradient norm {standing.norm:.4g}, and "
                f"{self.config.max_skipped} bad steps are allowed (train.max_skipped). Its documents are listed in "
                f"{self.run.metrics}. {self._advice}"
            )

    @property
    def _advice(self) -> str:
        rate = self.config.learning_rate
        return f"Lower train.learning_rate (now {rate}) or clip harder (train.grad_clip), then start with --fresh"

    def _roll_back(self, error: TrainingError) -> None:
        """Return to the newest checkpoint, once, and leave out the blocks since; otherwise raise ``error``."""
        reached, passed_over = self.state.step, self.state.passed_over
        self.checkpoints.wait()
        newest = self._newest_checkpoint()
        if not self.config.rollback or passed_over or newest is None:
            raise error
        self.state = self._resume(newest)
        self.state.passed_over = passed_over + (reached - self.state.step) * self.config.batch_size
        self.skipped_steps = self.train_step.guard.standing().bad
        self.clock.lap()
        self.metrics = self._open_metrics(keep_events=True)
        self._event(f"rolled back from step {reached} to {self.state.step}: {error}")

    def _log(self, norm: torch.Tensor | float) -> None:
        """Write a row of metrics. Waits for the device."""
        state, (loss, tokens) = self.state, self.train_step.totals()
        self._pause()
        seconds, waited = state.row_seconds, state.row_waited
        state.row_seconds = state.row_waited = 0.0
        state.tokens += tokens
        if math.isnan(loss):
            return
        state.train_loss, speed = loss, tokens / seconds
        peak = self.config.peak_tflops * 1e12 * self.ranks.world
        self._write(
            "train",
            loss=loss,
            learning_rate=self.plan.schedule.rate(state.step - 1),
            gradient_norm=float(norm),
            tokens_per_second=speed,
            memory_bytes=peak_memory(self.train_step.device),
            data_wait_share=waited / seconds,
            skipped=self.skipped_steps,
            **({"mfu": speed * self.flops_per_token / peak} if peak else {}),
        )

    def _validate(self, should_stop: Callable[[], bool]) -> bool:
        """Score the validation documents; True if the loss is the best so far.

        Raises ValidationStoppedError for a stop.
        """
        state = self.state
        with self._between_steps("validation"), self.train_step.whole_model():
            scores = self.validation(should_stop)
        score = sum(scores.values(), Score())
        loss = state.validation_loss = score.nats_per_token
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss is {loss} after step {state.step}. {self._advice}")
        sources = {name: each.nats_per_token for name, each in scores.items()}
        named = {"sources": sources} if len(sources) > 1 else {}
        self._write("validation", loss=loss, bits_per_byte=score.bits_per_byte, **named)
        return state.early_stopping.gains(state.step, loss, self.config.min_gain)

    def _write_samples(self) -> None:
        with self._between_steps("samples"), self.train_step.whole_model():
            write_samples(self.run, self.train_step.model, self.state.step, self.metrics)

    def _save(self) -> None:
        self._check_guard()  # no checkpoint after too many bad steps
        with self._between_steps("checkpoint"):
            self._begin_save()

    def _begin_save(self, random: Tensors | None = None) -> None:
        state = {**asdict(self.state), "learner": self.train_step.state()}
        self.checkpoints.save(self.state.step, self.train_step.model, self.train_step.optimizers, state, random)

    @contextmanager
    def _between_steps(self, phase: str) -> Iterator[None]:
        """The time of the body does not count as training."""
        self._pause()
        try:
            with self.progress.phase(phase, self.state.step):
                yield
        finally:
            self.clock.lap()

    def _pause(self) -> None:
        """Count the time until now as training. The time until the next lap does not count."""
        seconds, waited = self.clock.lap()
        self.state.seconds += seconds
        self.state.row_seconds += seconds
        self.state.row_waited += waited

    def _is_time_up(self) -> bool:
        return 0 < self.config.max_minutes <= self.clock.minutes()

    def _why_stopped(self) -> str:
        why = f"after {self.config.max_minutes:g} minutes" if self._is_time_up() else "on request"
        return (
            f"training stopped {why} after step {self.state.step} of {self.plan.total_steps}, checkpoint saved: "
            "the same command continues"
        )

    def _write(self, kind: str, **figures: Any) -> None:
        """Append a row of metrics, in the first rank."""
        step, tokens = self.state.step, self.state.tokens + self.train_step.tokens_since_totals()
        about = {"total_steps": self.plan.total_steps, "tokens": tokens, "epoch": self.plan.epoch(step)}
        if self.metrics is not None:
            self.metrics.write({"kind": kind, "step": step, **about, **figures})

    def _event(self, text: str, **figures: Any) -> None:
        _log.warning("%s", text)
        self._write("event", text=text, **figures)

    def _write_result(self) -> None:
        state, step, model = self.state, self.state.step, self.train_step.model
        if math.isnan(state.train_loss):
            raise TrainingError(
                f"none of {state.step} steps had a finite gradient, so no weights changed. {self._advice}; another "
                "train.precision may help too"
            )
        if self.config.patience and whole_checkpoint(self.run.checkpoints, state.early_stopping.best_step):
            step = state.early_stopping.best_step
        TrainingResult(
            run=self.run.folder.name,
            folder=self.run.folder,
            step=step,
            last_step=state.step,
            tokens=state.tokens,
            train_loss=state.train_loss,
            validation_loss=state.validation_loss if step == state.step else state.early_stopping.best_loss,
            tokens_per_second=state.tokens / state.seconds,
            skipped_steps=self.skipped_steps,
            weights=weights_hash(self._checkpoint(step)),
            parameters=parameter_count(model),
            trainable_parameters=parameter_count(model, trainable_only=True),
            flops_per_token=self.flops_per_token,
            device=str(self.train_step.device),
            precision=self.train_step.precision,
            seconds=state.seconds,
            ended=iso_timestamp(),
            trunk=whole_checkpoint(self.run.checkpoints, self.plan.schedule.decay_start),
        ).save()

    def _checkpoint(self, step: int) -> Path:
        return checkpoint_path(self.run.checkpoints, step)
