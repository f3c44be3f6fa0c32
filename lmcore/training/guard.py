"""What watches over a training: a loss or gradient that is no number, a spike, and a validation that gains no more.

Every step is judged where its loss is, on the device, so that the CPU need not wait for the answer. Once
more steps were bad than ``train.max_skipped`` allows, every later one is skipped too: whenever the CPU looks, the
weights are those before the step that was one too many.
"""

import math
from dataclasses import dataclass

import torch

from lmcore.model.device import wide_float
from lmcore.settings.config import TrainConfig

_WINDOW = 100
"""Steps over which mean and variance of the loss are averaged, exponentially."""
_FIGURES, _REMEMBERED = 6, 16


@dataclass(frozen=True)
class Standing:
    """What the guard says when it is asked."""

    bad: int
    """Bad steps so far in this run."""
    steps: list[int]
    """The last of them, at most 16."""
    loss: float
    """Of the last of them, nats per token."""
    norm: float
    """Of its gradient."""
    is_over: bool
    """One more than allowed."""


class Guard:
    """Judges steps; the same on every rank, since loss and norm are. ``saved`` is an earlier guard's ``figures()``."""

    def __init__(self, config: TrainConfig, device: torch.device, saved: list[float | None] | None = None) -> None:
        self._config = config
        # Steps judged good, mean and variance of their losses; bad steps, loss and norm of the last one; and the
        # numbers of the last of them. JSON has null for a loss or norm that is no number.
        figures = [math.nan if figure is None else figure for figure in saved or [0.0] * (_FIGURES + _REMEMBERED)]
        self._state = torch.tensor(figures, dtype=wide_float(device), device=device)
        self._places = torch.arange(_REMEMBERED, device=device)

    def skips(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Whether step number ``step`` must not change the weights: a boolean scalar on the device.

        ``loss`` is in nats per token, ``norm`` the gradient's before clipping.
        """
        good, mean, variance, bad, last_loss, last_norm = self._state[:_FIGURES].unbind()
        loss, norm = loss.to(self._state.dtype), norm.to(self._state.dtype)
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self._config.spike_deviations:
            limit = mean + self._config.spike_deviations * variance.sqrt()
            is_bad |= (good >= _WINDOW) & (loss > limit)
        is_over = bad > self._config.max_skipped
        is_counted = is_bad & ~is_over
        skip = is_bad | is_over
        share = torch.where(skip, 0, 1 / (good + 1).clamp(max=_WINDOW))
        change = torch.where(skip, 0, loss - mean)
        figures = [
            good + ~skip,
            mean + share * change,
            (1 - share) * (variance + share * change * change),
            bad + is_counted,
            torch.where(is_counted, loss, last_loss),
            torch.where(is_counted, norm, last_norm),
        ]
        is_here = (self._places == bad % _REMEMBERED) & is_counted
        self._state = torch.cat([torch.stack(figures), torch.where(is_here, step, self._state[_FIGURES:])])
        return skip

    def standing(self) -> Standing:
        """Waits for the device."""
        figures = self.figures()
        bad, loss, norm = int(figures[3]), *figures[4:_FIGURES]
        steps = [int(step) for step in figures[_FIGURES : _FIGURES + min(bad, _REMEMBERED)]]
        return Standing(bad, sorted(steps), loss, norm, bad > self._config.max_skipped)

    def figures(self) -> list[float]:
        """For a checkpoint. Waits for the device."""
        figures: list[float] = self._state.tolist()
        return figures


@dataclass
class EarlyStopping:
    """Counts validations without gain."""

    best_loss: float = float("inf")
    """Nats per token."""
    best_step: int = 0
    without_gain: int = 0

    def gains(self, step: int, loss: float, min_gain: float) -> bool:
        """Take note of a validation; True if it is the best one so far, by ``min_gain`` at least."""
        if loss < self.best_loss - min_gain:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            return True
        self.without_gain += 1
        return False
