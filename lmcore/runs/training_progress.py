"""progress.json of a run: how far the training is. The training process writes it; displays read it.

The time left is measured from the end of the first step on, without importing, compiling and the slow first step. Long
steps are estimated from part of a block before the first one.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from lmcore.clock import duration
from lmcore.progress import Standing
from lmcore.runs.metrics import training_note
from lmcore.runs.run import Run
from lmcore.store.json_files import from_json, to_json

_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_TO_MEASURE = 3.0
"""Seconds of steps that are measured before the time left is reported."""
_OLD_SECONDS = 120.0
"""Seconds of steps after which older ones count less, because the speed of a machine may change."""
_LONG = 3600.0
"""Seconds. A longer training is logged as a warning."""
_STEPS = "steps"
"""The phase of training steps. Other phases are validation, checkpoint and samples."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is."""

    step: int
    total_steps: int
    phase: str
    seconds_left: float | None
    """Including validations and checkpoints. None until it is known."""
    device: str

    @classmethod
    def read(cls, path: Path) -> "TrainingProgress | None":
        """The progress in a file; None if it is missing or is just being written."""
        try:
            return cls(**from_json(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class RecurringWork:
    """Work between steps at regular intervals: validation, checkpoints or samples."""

    every: int
    """Steps between two of them. 0: never."""
    steps: float = 0.0
    """Estimated duration in steps, until it has been measured."""


class ProgressWriter:
    """Writes progress.json. A full disk stops the display, not the training."""

    def __init__(
        self,
        path: Path | None,
        total_steps: int,
        recurring: dict[str, RecurringWork],
        device: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``path`` is None in ranks that write nothing. ``recurring`` go by the name of their phase."""
        self._path, self._total, self._recurring = path, total_steps, recurring
        self._device, self._clock = device, clock
        self._last: tuple[int, float] | None = None
        self._steps = self._seconds = self._written = 0.0
        self._guess: float | None = None
        self._measured: dict[str, list[float]] = {}

    def begin(self, step: int, seconds_per_step: float | None) -> None:
        """Write the first record. The estimate is used for long steps only; short ones are soon measured."""
        if seconds_per_step is not None and seconds_per_step > _SECONDS_TO_MEASURE:
            self._guess = seconds_per_step
        self._write(step, _STEPS)

    def reached(self, step: int) -> None:
        """Record that a step has ended. It need not be called at every step."""
        now = self._clock()
        if self._last is not None:
            if self._seconds > _OLD_SECONDS:
                self._steps, self._seconds = self._steps / 2, self._seconds / 2
            self._steps += step - self._last[0]
            self._seconds += now - self._last[1]
        self._last = step, now
        if step == self._total or now - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write(step, _STEPS)

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """Time work between steps: while the body runs, no step is made."""
        started = self._clock()
        self._write(step, name)
        yield
        now = self._clock()
        self._measured[name] = [*self._measured.get(name, [])[-4:], now - started]
        if self._last is not None:
            self._last = self._last[0], now

    def _write(self, step: int, phase: str) -> None:
        self._written = self._clock()
        if self._path is None:
            return
        is_measured = self._steps and self._seconds >= _SECONDS_TO_MEASURE
        speed = self._seconds / self._steps if is_measured else self._guess
        left = None if speed is None else self._seconds_left(step, speed)
        progress = TrainingProgress(step, self._total, phase, left, self._device)
        with suppress(OSError):
            self._path.write_text(to_json(asdict(progress)))

    def _seconds_left(self, step: int, seconds_per_step: float) -> float:
        seconds = (self._total - step) * seconds_per_step
        for name, each in self._recurring.items():
            count = self._total // each.every - step // each.every if each.every else 0
            cost = mean(self._measured[name]) if name in self._measured else each.steps * seconds_per_step
            seconds += count * cost
        return seconds


def training_poll(run: Run, logger: logging.Logger) -> Callable[[], Standing]:
    """A function that returns the progress of a run's training. It logs the time left once, when it is known.

    The progress file of an earlier start is removed.
    """
    run.progress.unlink(missing_ok=True)
    last: TrainingProgress | None = None
    is_said = False

    def poll() -> Standing:
        nonlocal last, is_said
        last = TrainingProgress.read(run.progress) or last
        if last is None:
            return Standing(note="loading")
        if last.seconds_left is not None and not is_said:
            is_said = True
            logger.log(*forecast(last, last.seconds_left))
        note = last.phase
        if note == _STEPS:
            note = training_note(run.metrics) or ("the first step" if last.step == 0 else "")
        return Standing(last.step, last.total_steps, note, last.seconds_left)

    return poll


def forecast(progress: TrainingProgress, seconds: float) -> tuple[int, str]:
    """A log level and a sentence on how long the training takes. From an hour on it says what takes less."""
    total, left = progress.total_steps, progress.total_steps - progress.step
    device = {"cpu": "this CPU", "cuda": "this GPU"}.get(progress.device, "this machine")
    steps = f"{total:,} steps" if left > 0.9 * total else f"{left:,} steps left"
    text = f"At this speed the training takes about {duration(seconds)} on {device} ({steps})"
    if seconds < _LONG:
        return logging.INFO, text
    return logging.WARNING, (
        f"{text}. The preset tiny takes minutes on a CPU. With train.max_minutes the training saves and stops, and the "
        "same command continues"
    )
