"""Bad steps are skipped and counted where the loss is; validations without gain end a training."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.settings.config import TrainConfig
from lmcore.training.checkpoint import EarlyStopping
from lmcore.training.guard import Guard

CPU = torch.device("cpu")


def judge(guard: Guard, losses: list[float], norm: float = 1.0, first: int = 1) -> list[bool]:
    steps = enumerate(losses, first)
    return [bool(guard.skips(step, torch.tensor(loss), torch.tensor(norm))) for step, loss in steps]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_skipped_and_named(loss: float) -> None:
    guard = Guard(TrainConfig(max_skipped=2), CPU)
    assert judge(guard, [3.0, loss, 3.0, loss, 3.0]) == [False, True, False, True, False]
    standing = guard.standing()
    assert (standing.bad, standing.steps, standing.is_over) == (2, [2, 4], False)
    assert (str(standing.loss), standing.norm) == (str(loss), 1.0)


def test_a_gradient_that_is_no_number_is_skipped() -> None:
    guard = Guard(TrainConfig(max_skipped=1), CPU)
    assert judge(guard, [3.0], norm=math.inf) == [True]


def test_after_one_too_many_nothing_changes_any_more() -> None:
    guard = Guard(TrainConfig(max_skipped=1), CPU)
    assert judge(guard, [3.0, math.nan, math.nan, 3.0, math.nan, 3.0]) == [False, True, True, True, True, True]
    standing = guard.standing()
    assert (standing.bad, standing.steps, standing.is_over) == (2, [2, 3], True)


def test_many_bad_steps_are_counted_and_the_last_remembered() -> None:
    guard = Guard(TrainConfig(max_skipped=1000), CPU)
    judge(guard, [math.nan] * 40)
    assert guard.standing().bad == 40
    assert guard.standing().steps == list(range(25, 41))


def noise(count: int) -> list[float]:
    return (3 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))).tolist()


def test_a_spike_is_skipped_once_there_is_something_to_compare_with() -> None:
    config = TrainConfig(max_skipped=10, spike_deviations=6)
    guard = Guard(config, CPU)
    assert judge(guard, [3.0, 9.0, 3.0]) == [False, False, False], "too early to say"
    guard = Guard(config, CPU)
    assert not any(judge(guard, noise(300)))
    assert judge(guard, [4.5, 3.0, 2.0], first=301) == [True, False, False]
    assert guard.standing().steps == [301]


def test_without_deviations_there_are_no_spikes() -> None:
    guard = Guard(TrainConfig(max_skipped=10), CPU)
    assert not any(judge(guard, [*noise(300), 1e9]))


@given(st.lists(st.one_of(st.floats(0, 100), st.just(math.nan)), max_size=30), st.integers(0, 30), st.integers(0, 5))
def test_a_guard_that_was_saved_goes_on_as_if_nothing_had_happened(losses: list[float], cut: int, most: int) -> None:
    config = TrainConfig(max_skipped=most, spike_deviations=2)
    whole, begun = Guard(config, CPU), Guard(config, CPU)
    expected = judge(whole, losses)
    first = judge(begun, losses[:cut])
    resumed = Guard(config, CPU, begun.figures())
    assert first + judge(resumed, losses[cut:], first=1 + len(losses[:cut])) == expected
    assert str(resumed.figures()) == str(whole.figures()), "nan is not equal to itself"


def test_validations_without_gain_are_counted() -> None:
    stopping = EarlyStopping()
    losses = [3.0, 2.0, 1.95, 2.5, 1.5]
    assert [stopping.gains(step, loss, 0.1) for step, loss in enumerate(losses)] == [True, True, False, False, True]
    assert (stopping.best_step, stopping.best_loss, stopping.without_gain) == (4, 1.5, 0)
    stopping.gains(5, math.nan, 0.1)
    assert stopping.without_gain == 1
