"""progress.json of a run: how far the training is. The training process writes it; displays read it.

The time left is measured from the end of the first step on, without importing, compiling and the slow first step. Long
steps are estimated from part of a block before the first one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from lmcore.store.json_files import from_json, to_json

_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_TO_MEASURE = 3.0
"""Seconds of steps that are measured before the time left is reported."""
_OLD_SECONDS = 120.0
"""Seconds of steps after which older ones count less, because the speed of a machine may change."""

STEPS = "steps"
"""The phase of training steps. Other phases are validation, checkpoint and samples."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is."""

    step: int
    total_steps: int
    phase: str
    seconds_per_step: float | None
    """None until it is known."""
    seconds_left: float | None
    """Including validations and checkpoints."""
    flops_per_step: float
    device: str

    @classmethod
    def read(cls, path: Path) -> "TrainingProgress | None":
        """The progress in a file; None if it is missing or is just being written."""
        try:
            return cls(**from_json(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


class Pace:
    """Seconds per step, from the end of the first step on, without the work between steps."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None
        self._steps = self._seconds = 0.0

    def reached(self, step: int) -> None:
        """Record that a step has ended. It need not be called at every step."""
        now = self._clock()
        if self._last is not None:
            if self._seconds > _OLD_SECONDS:
                self._steps, self._seconds = self._steps / 2, self._seconds / 2
            self._steps += step - self._last[0]
            self._seconds += now - self._last[1]
        self._last = step, now

    def resume(self) -> None:
        """Record that work between steps has ended; its time does not count."""
        if self._last is not None:
            self._last = self._last[0], self._clock()

    @property
    def seconds_per_step(self) -> float | None:
        return self._seconds / self._steps if self._seconds >= _SECONDS_TO_MEASURE and self._steps else None


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
        flops_per_step: float,
        device: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``path`` is None in ranks that write nothing. ``recurring`` go by the name of their phase."""
        self._path, self._total, self._recurring = path, total_steps, recurring
        self._flops, self._device, self._clock = flops_per_step, device, clock
        self._pace = Pace(clock)
        self._guess: float | None = None
        self._measured: dict[str, list[float]] = {}
        self._written = 0.0

    def begin(self, step: int, seconds_per_step: float | None) -> None:
        """Write the first record. The estimate is used for long steps only; short ones are soon measured."""
        if seconds_per_step is not None and seconds_per_step > _SECONDS_TO_MEASURE:
            self._guess = seconds_per_step
        self._write(step, STEPS)

    def reached(self, step: int) -> None:
        """Record that a step has ended."""
        self._pace.reached(step)
        if step == self._total or self._clock() - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write(step, STEPS)

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """Time work between steps: while the body runs, no step is made."""
        started = self._clock()
        self._write(step, name)
        yield
        self._measured[name] = [*self._measured.get(name, [])[-4:], self._clock() - started]
        self._pace.resume()

    def _write(self, step: int, phase: str) -> None:
        self._written = self._clock()
        if self._path is None:
            return
        speed = self._pace.seconds_per_step or self._guess
        left = None if speed is None else self._seconds_left(step, speed)
        progress = TrainingProgress(step, self._total, phase, speed, left, self._flops, self._device)
        with suppress(OSError):
            self._path.write_text(to_json(asdict(progress)))

    def _seconds_left(self, step: int, seconds_per_step: float) -> float:
        seconds = (self._total - step) * seconds_per_step
        for name, each in self._recurring.items():
            count = self._total // each.every - step // each.every if each.every else 0
            cost = mean(self._measured[name]) if name in self._measured else each.steps * seconds_per_step
            seconds += count * cost
        return seconds
