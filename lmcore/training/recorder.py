"""What a training writes while it runs: rows of metrics.jsonl, events among them, and progress.json."""

import logging
from typing import Any

from lmcore.runs.metrics import MetricsWriter
from lmcore.runs.run import Run
from lmcore.runs.training_progress import ProgressWriter, RecurringWork
from lmcore.training.plan import Plan

_log = logging.getLogger(__name__)


class Recorder:
    """Writes the files of one run. In ranks but the first it writes nothing, and ``metrics`` is None."""

    def __init__(self, run: Run, plan: Plan, is_first: bool) -> None:
        self._run, self._plan, self._is_first = run, plan, is_first
        self.metrics: MetricsWriter | None = None

    def open(self, step: int, keep_events: bool = False) -> None:
        """Go on after ``step``: rows of later steps are dropped, and with ``keep_events`` events are kept."""
        if self._is_first:
            tensorboard = self._run.folder / "tensorboard" if self._run.config.train.tensorboard else None
            self.metrics = MetricsWriter(self._run.metrics, step, tensorboard, keep_events)

    def progress(self, validation_tokens: int, flops_per_token: float, device: str) -> ProgressWriter:
        """The writer of progress.json. A validation scores ``validation_tokens``."""
        plan, config = self._plan, self._run.config
        every = min(plan.validate_every, plan.epoch_steps)
        recurring = {
            # A forward pass is a third of a step, token by token.
            "validation": RecurringWork(every, validation_tokens / 3 / plan.step_tokens),
            "checkpoint": RecurringWork(config.train.checkpoint_every),
            "samples": RecurringWork(config.sample.every),
        }
        path = self._run.progress if self._is_first else None
        return ProgressWriter(path, plan.total_steps, recurring, flops_per_token * plan.step_tokens, device)

    def write(self, kind: str, step: int, tokens: int, **figures: Any) -> None:
        """Append a row. ``tokens`` are those trained on so far."""
        if self.metrics is not None:
            about = {"total_steps": self._plan.total_steps, "tokens": tokens, "epoch": self._plan.epoch(step)}
            self.metrics.write({"kind": kind, "step": step, **about, **figures})

    def event(self, text: str, step: int, tokens: int, **figures: Any) -> None:
        """Log a warning and append it as a row."""
        _log.warning("%s", text)
        self.write("event", step, tokens, text=text, **figures)
