"""Skipping of bad steps: a loss or gradient that is not finite, or a loss spike.

Each step is tested on the device, so the CPU does not wait for the result. After more bad steps than
``train.max_skipped`` all later steps are skipped too, so the weights stay those before the step that exceeded the limit
until the CPU reads the result.
"""

import math
from dataclasses import dataclass

import torch

from lmcore.model.device import wide_float
from lmcore.settings.config import TrainConfig

_WINDOW = 100
"""Steps of the exponential moving average of the loss and its variance."""
_FIGURES, _REMEMBERED = 6, 16


@dataclass(frozen=True)
class GuardState:
    """Bad steps so far."""

    bad: int
    """Their number in this run."""
    steps: list[int]
    """The last ones, at most 16."""
    loss: float
    """Loss of the last one, in nats per token."""
    norm: float
    """Norm of its gradient."""
    is_over: bool
    """True if there were more than allowed."""


class Guard:
    """Tests steps, with equal results on all ranks. ``saved`` are the ``figures()`` of an earlier guard."""

    def __init__(self, config: TrainConfig, device: torch.device, saved: list[float | None] | None = None) -> None:
        self._config = config
        # Good steps, mean and variance of their losses; bad steps, loss and norm of the last one; the numbers of the
        # last bad steps. A loss or norm that is not finite is null in JSON.
        figures = [math.nan if figure is None else figure for figure in saved or [0.0] * (_FIGURES + _REMEMBERED)]
        self._state = torch.tensor(figures, dtype=wide_float(device), device=device)
        self._places = torch.arange(_REMEMBERED, device=device)

    def skips(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """True if step number ``step`` must not change the weights: a boolean scalar on the device.

        ``loss`` is in nats per token, ``norm`` the norm of the gradient before clipping.
        """
        good, mean, variance, bad, last_loss, last_norm = self._state[:_FIGURES].unbind()
        loss, norm = loss.to(self._state.dtype), norm.to(self._state.dtype)
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self._config.spike_deviations:
            is_bad |= (good >= _WINDOW) & (loss > mean + self._config.spike_deviations * variance.sqrt())
        is_over = bad > self._config.max_skipped
        is_counted, skip = is_bad & ~is_over, is_bad | is_over
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

    def standing(self) -> GuardState:
        """The state now. Waits for the device."""
        _, _, _, bad, loss, norm, *steps = self.figures()
        last = sorted(int(step) for step in steps[: min(int(bad), _REMEMBERED)])
        return GuardState(int(bad), last, loss, norm, bad > self._config.max_skipped)

    def figures(self) -> list[float]:
        """The state for a checkpoint. Waits for the device."""
        figures: list[float] = self._state.tolist()
        return figures
