"""progress.json of a run: how far the training is, written by the child that trains and read by whoever shows it.

The time that is left is measured by the child, from the end of its first step on: importing torch, compiling and the
slow first step are over by then. Steps that take long are estimated before the first one, from a single block.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from lmcore.store.strict_json import from_json, to_json

_SECONDS_BETWEEN_WRITES = 0.5
_SECONDS_TO_MEASURE = 3.0
"""Of steps, before the time that is left is stated."""
_OLD_SECONDS = 120.0
"""Of steps, after which older ones count less: a machine may have become slower or faster."""

STEPS = "steps"
"""The phase in which steps are made; others are validation, checkpoint and samples."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is."""

    step: int
    total_steps: int
    phase: str
    seconds_per_step: float | None
    """None until it is known."""
    seconds_left: float | None
    """Validations and checkpoints included."""
    flops_per_step: float
    device: str

    @classmethod
    def read(cls, path: Path) -> "TrainingProgress | None":
        """None when there is no file, or one that is just being written."""
        try:
            return cls(**from_json(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


class Pace:
    """How long a step takes, from the end of the first step on; what happens between steps is left out."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None
        self._steps = self._seconds = 0.0

    def reached(self, step: int) -> None:
        """Called when a step has ended, not necessarily each one."""
        now = self._clock()
        if self._last is not None:
            if self._seconds > _OLD_SECONDS:
                self._steps, self._seconds = self._steps / 2, self._seconds / 2
            self._steps += step - self._last[0]
            self._seconds += now - self._last[1]
        self._last = step, now

    def resume(self) -> None:
        """Called when work between steps has ended: its time does not count."""
        if self._last is not None:
            self._last = self._last[0], self._clock()

    @property
    def seconds_per_step(self) -> float | None:
        return self._seconds / self._steps if self._seconds >= _SECONDS_TO_MEASURE and self._steps else None


@dataclass(frozen=True)
class RecurringWork:
    """Validation, checkpoints or samples: what happens between steps at regular intervals."""

    every: int
    """Steps from one to the next. 0: never."""
    steps: float = 0.0
    """How long it takes, in steps, as far as that is known before it was measured."""


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
        """Called before the first step. A guess is used for long steps only: short ones are measured in a moment."""
        if seconds_per_step is not None and seconds_per_step > _SECONDS_TO_MEASURE:
            self._guess = seconds_per_step
        self._write(step, STEPS)

    def reached(self, step: int) -> None:
        """Called when a step has ended."""
        self._pace.reached(step)
        if step == self._total or self._clock() - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write(step, STEPS)

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """While the body runs, no steps are made: its time is measured apart."""
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
