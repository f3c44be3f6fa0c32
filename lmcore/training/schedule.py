"""The number of optimizer steps of a run, and the learning rate of each step: pure functions of the step.

A schedule has a warm-up, a stable phase and a decay. Each may be empty:

    cosine, linear   warm-up, decay to the last step
    wsd              warm-up, stable, decay over the last ``decay`` steps (arXiv 2404.06395)
    constant         warm-up, stable
    inverse_sqrt     warm-up, 1 / sqrt(steps), independent of the last step (arXiv 1706.03762)

Steps count from 0. Step ``step`` has the rate of the curve after ``step + 1`` steps, so the last step of the warm-up
has the peak, and the last step of the decay exactly the minimum.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from lmcore.errors import ConfigError
from lmcore.settings.training import Size, TrainConfig

_SIZE = re.compile(r"([0-9_]+(?:\.[0-9]+)?)([kMG]?) ?(steps|tokens|epochs|%)")
_SCALES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}

# The part of the way from the minimum to the peak that is left when ``done``, 0 to 1, of the decay is.
_LEFT: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "wsd": lambda done: 1 - math.sqrt(done),
}


def _amount(size: str) -> tuple[float, str]:
    """The number and the unit of a size; (0, "") for other text."""
    parts = _SIZE.fullmatch(size)
    return (float(parts[1].replace("_", "")) * _SCALES[parts[2]], parts[3]) if parts else (0.0, "")


def steps_in(size: Size, *, total_steps: int, batch_tokens: int, epoch_steps: float) -> int:
    """Optimizer steps in ``size``, to the nearest, of a run of ``total_steps``.

    ``batch_tokens`` are those of one step, ``epoch_steps`` the steps (and part of one) of one pass over the blocks.
    Raises ConfigError when ``size`` is none.
    """
    amount, unit = _amount(size)
    if not unit:
        raise ConfigError(f"{size!r} is not a size: write it like '100 steps', '2.5M tokens', '0.1 epochs' or '20 %'")
    steps = {"tokens": amount / batch_tokens, "epochs": amount * epoch_steps, "%": amount / 100 * total_steps}
    return round(steps.get(unit, amount))


def length_settings(size: str) -> dict[str, float]:
    """The settings of ``train`` for a length such as "700 steps", "2.5M tokens" or "3 epochs"; {} for "".

    Raises ConfigError for other text.
    """
    if not size:
        return {}
    amount, unit = _amount(size)
    if not amount or unit == "%":
        raise ConfigError(f"{size!r} is not a length: write it like '700 steps', '2.5M tokens' or '3 epochs'")
    return {"epochs": amount} if unit == "epochs" else {f"max_{unit}": max(1, round(amount))}


def planned_steps(config: TrainConfig, blocks: int, block_size: int) -> int:
    """Optimizer steps of a run over ``blocks`` training blocks of ``block_size`` tokens.

    It is max_steps, or the batches that hold max_tokens, or the batches of the epochs. The last batch may be short.
    """
    if config.max_steps:
        return config.max_steps
    if config.max_tokens:
        return math.ceil(config.max_tokens / (config.batch_size * block_size))
    return max(1, math.ceil(math.ceil(config.epochs * blocks) / config.batch_size))


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of one run."""

    config: TrainConfig
    total_steps: int
    warmup_steps: int
    decay_steps: int
    """At the end of the run."""

    @classmethod
    def from_config(cls, config: TrainConfig, total_steps: int, blocks: int, block_size: int) -> Self:
        """The schedule that ``config`` asks for, in a run over ``blocks`` training blocks of ``block_size`` tokens.

        Raises ConfigError when warm-up and decay are longer than the run.
        """

        def steps(size: Size) -> int:
            batch_tokens, epoch_steps = config.batch_size * block_size, blocks / config.batch_size
            return steps_in(size, total_steps=total_steps, batch_tokens=batch_tokens, epoch_steps=epoch_steps)

        warmup = steps(config.warmup)
        if config.schedule == "wsd":
            decay = steps(config.decay)
            if warmup + decay == total_steps + 1 and (config.warmup + config.decay).count("%") == 2:
                decay -= 1  # both percentages were rounded up
        else:
            decay = max(1, total_steps - warmup) if config.schedule in _LEFT else 0
        if warmup + decay > total_steps:
            raise ConfigError(_too_long(config, total_steps, warmup, decay))
        return cls(config, total_steps, warmup, decay)

    @property
    def decay_start(self) -> int | None:
        """The number of steps before the decay of wsd; None for other schedules.

        A longer run has equal rates up to this step, so it can continue from this checkpoint.
        """
        return self.total_steps - self.decay_steps if self.config.schedule == "wsd" else None

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, 0 to total_steps - 1."""
        config, done = self.config, step + 1
        decayed = done - (self.total_steps - self.decay_steps)
        if done < self.warmup_steps:
            return _between(config.warmup_from, config.learning_rate, done / self.warmup_steps)
        if config.schedule == "inverse_sqrt":
            return config.learning_rate * math.sqrt(max(1, self.warmup_steps) / done)
        if decayed <= 0:
            return config.learning_rate
        left = _LEFT[config.schedule](decayed / self.decay_steps)
        return _between(config.min_learning_rate, config.learning_rate, left)


def _between(low: float, high: float, share: float) -> float:
    """``low`` at share 0 and ``high`` at share 1, both exactly."""
    return (1 - share) * low + share * high


def _too_long(config: TrainConfig, total_steps: int, warmup: int, decay: int) -> str:
    parts = f"train.warmup = {config.warmup!r} is {warmup:,} steps"
    if config.schedule == "wsd":
        parts += f" and train.decay = {config.decay!r} is {decay:,}"
    else:
        parts += f" and train.schedule = {config.schedule!r} needs {decay} or more after it" if decay else ""
    return f"{parts}, but the run has {total_steps:,}: train longer, or give less, such as '5 %' of all steps"
