"""The number of steps, and the learning rate of every one of them."""

import math
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import ConfigError
from lmcore.settings.config import TrainConfig
from lmcore.training.schedule import Schedule, planned_steps, steps_in

BY_HAND: dict[str, Any] = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup": "4 steps", "decay": "4 steps"}
KINDS = list(get_args(TrainConfig.model_fields["schedule"].annotation))
ENDLESS = ["constant", "inverse_sqrt"]
WHOLE = [kind for kind in KINDS if kind not in (*ENDLESS, "wsd")]
"""That decay over all of the run after the warm-up."""


def schedule(total_steps: int, *, blocks: int = 1000, block_size: int = 8, **settings: Any) -> Schedule:
    config = TrainConfig.model_validate({"batch_size": 10, **BY_HAND, **settings})
    return Schedule.from_config(config, total_steps, blocks, block_size)


def rates(total_steps: int, **settings: Any) -> list[float]:
    each = schedule(total_steps, **settings)
    return [each.rate(step) for step in range(total_steps)]


# --- how long ---


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 5, "max_tokens": 1, "epochs": 3}, 5),
        ({"max_tokens": 1, "epochs": 3}, 1),
        ({"max_tokens": 1600}, 10),
        ({"max_tokens": 1601}, 11),
    ],
)
def test_steps_go_before_tokens_and_tokens_before_epochs(settings: dict[str, Any], steps: int) -> None:
    assert planned_steps(TrainConfig(batch_size=16, **settings), 1, 10) == steps


@pytest.mark.parametrize(
    ("epochs", "blocks", "steps"),
    [(1, 16, 1), (1, 17, 2), (2, 17, 3), (0.5, 64, 2), (0.5, 65, 3), (0.001, 1, 1)],
)
def test_the_last_batch_of_the_epochs_may_be_short(epochs: float, blocks: int, steps: int) -> None:
    assert planned_steps(TrainConfig(batch_size=16, epochs=epochs), blocks, 10) == steps


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ("0 steps", 0),
        ("100 steps", 100),
        ("1_000steps", 1000),
        ("1.5k steps", 1500),
        ("2.5M tokens", 2500),
        ("1G tokens", 1_000_000),
        ("499 tokens", 0),
        ("501 tokens", 1),
        ("0.1 epochs", 25),
        ("2 epochs", 501),
        ("20 %", 7),
        ("100%", 35),
    ],
)
def test_sizes(size: str, steps: int) -> None:
    assert steps_in(size, total_steps=35, batch_tokens=1000, epoch_steps=250.5) == steps
    assert TrainConfig(warmup=size).warmup == size


@pytest.mark.parametrize("size", ["", "steps", "100", "-1 steps", "5 minutes", "1e3 steps", "1 K steps"])
def test_what_is_no_size_is_refused_in_words(size: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size: write it like '100 steps'"):
        steps_in(size, total_steps=1, batch_tokens=1, epoch_steps=1)


def test_a_warm_up_in_tokens_or_epochs() -> None:
    assert schedule(1000, warmup="800 tokens").warmup_steps == 10
    assert schedule(1000, warmup="0.2 epochs").warmup_steps == 20


# --- by hand ---


def test_cosine_and_linear_by_hand() -> None:
    assert rates(8) == pytest.approx(
        [0.25, 0.5, 0.75, 1, *[0.55 + 0.45 * math.cos(math.pi * i / 4) for i in (1, 2, 3, 4)]]
    )
    assert rates(8, schedule="linear") == pytest.approx([0.25, 0.5, 0.75, 1, 0.775, 0.55, 0.325, 0.1])


def test_wsd_by_hand() -> None:
    start = [0.25, 0.5, 0.75, 1, 1, 1]
    root = [0.1 + 0.9 * (1 - math.sqrt(i / 4)) for i in (1, 2, 3, 4)]
    assert rates(10, schedule="wsd") == pytest.approx(start + root)
    assert schedule(10, schedule="wsd").decay_start == 6
    assert schedule(10).decay_start is None


def test_decay_shape_was_removed_and_runs_that_have_it_open() -> None:
    assert TrainConfig.model_validate({"decay_shape": "1-sqrt"}) == TrainConfig()
    with pytest.raises(ValueError, match="decay_shape was removed: leave it out"):
        TrainConfig.model_validate({"decay_shape": "linear"})


def test_constant_and_inverse_square_root_by_hand() -> None:
    assert rates(6, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1]
    falling = [0.25, 0.5, 0.75, 1, math.sqrt(4 / 5), math.sqrt(4 / 6)]
    assert rates(6, schedule="inverse_sqrt") == pytest.approx(falling)
    assert rates(4, schedule="inverse_sqrt", warmup="0 steps")[3] == 0.5


def test_continued_training_warms_up_from_where_the_last_one_ended() -> None:
    assert rates(5, warmup_from=0.2) == pytest.approx([0.4, 0.6, 0.8, 1, 0.1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_step(kind: str) -> None:
    ends_low = kind not in ENDLESS
    assert rates(1, schedule=kind, warmup="0 steps", decay="1 steps") == [0.1 if ends_low else 1.0]
    assert rates(1, schedule=kind, warmup="5 %", decay="20 %") == [0.1 if kind in WHOLE else 1.0]


def test_wsd_without_a_decay_is_constant() -> None:
    each = schedule(9, schedule="wsd", decay="0 steps")
    assert [each.rate(step) for step in range(9)] == rates(9, schedule="constant")
    assert each.decay_start == 9


# --- what does not fit ---


@pytest.mark.parametrize(
    ("total", "settings", "words"),
    [
        (
            4,
            {"schedule": "cosine"},
            r"'4 steps' is 4 steps and train.schedule = 'cosine' needs 1 or more after it, but",
        ),
        (4, {"schedule": "linear"}, r"'4 steps' is 4 steps and train.schedule = 'linear' needs 1 .* the run has 4:"),
        (3, {"schedule": "constant"}, r"train.warmup = '4 steps' is 4 steps, but the run has 3: train longer"),
        (3, {"schedule": "inverse_sqrt"}, r"train.warmup = '4 steps' is 4 steps, but the run has 3: train longer"),
        (7, {"schedule": "wsd"}, r"'4 steps' is 4 steps and train.decay = '4 steps' is 4, but the run has 7:"),
    ],
)
def test_parts_longer_than_the_run_are_refused_with_both_lengths(total: int, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        schedule(total, **settings)
    schedule(total + 1, **settings)


def test_shares_that_are_more_than_the_whole_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'60 %' is 600 steps and train.decay = '50 %' is 500, but the run has 1,000"
    ):
        schedule(1000, schedule="wsd", warmup="60 %", decay="50 %")


# --- laws ---


@st.composite
def schedules(draw: st.DrawFn, kinds: list[str] = KINDS) -> Schedule:
    total, peak = draw(st.integers(1, 400)), draw(st.floats(1e-5, 10))
    kind = draw(st.sampled_from(kinds))
    decay = draw(st.integers(1, total)) if kind == "wsd" else 0
    warmup = draw(st.integers(0, total - max(decay, kind in WHOLE)))
    return schedule(
        total,
        schedule=kind,
        learning_rate=peak,
        min_learning_rate=peak * draw(st.floats(0, 1)),
        warmup_from=peak * draw(st.floats(0, 1)),
        warmup=f"{warmup} steps",
        decay=f"{decay} steps",
    )


@given(schedules())
def test_rates_stay_between_their_ends_and_rise_only_to_warm_up(each: Schedule) -> None:
    config, warmup = each.config, each.warmup_steps
    found = [each.rate(step) for step in range(each.total_steps)]
    least = 0 if config.schedule == "inverse_sqrt" else min(config.min_learning_rate, config.warmup_from)
    ulp = 1e-12 * config.learning_rate
    assert all(least - ulp <= rate <= config.learning_rate + ulp for rate in found)
    rising, falling = found[:warmup], found[max(0, warmup - 1) :]
    assert all(b >= a - ulp for a, b in pairwise(rising))
    assert all(b <= a + ulp for a, b in pairwise(falling))
    if warmup:
        assert found[warmup - 1] == config.learning_rate


@given(schedules([*WHOLE, "wsd"]))
def test_the_last_step_has_exactly_the_minimum(each: Schedule) -> None:
    assert each.rate(each.total_steps - 1) == each.config.min_learning_rate


@given(schedules())
def test_no_jump_is_larger_than_the_steepest_step(each: Schedule) -> None:
    config, decay = each.config, max(1, each.decay_steps)
    fall = config.learning_rate - config.min_learning_rate
    steepest = {
        "cosine": fall * math.pi / 2 / decay,
        "linear": fall / decay,
        "wsd": fall * math.sqrt(1 / decay),
        "inverse_sqrt": config.learning_rate / 2 / max(1, each.warmup_steps),
        "constant": 0.0,
    }[config.schedule]
    rise = (config.learning_rate - config.warmup_from) / max(1, each.warmup_steps)
    start = config.warmup_from if each.warmup_steps else config.learning_rate
    found = [start, *(each.rate(step) for step in range(each.total_steps))]
    for step, (before, after) in enumerate(pairwise(found)):
        slope = rise if step < each.warmup_steps else steepest
        assert abs(after - before) <= slope + 1e-12 * config.learning_rate


@given(schedules(["wsd"]), st.integers(1, 1000))
def test_a_longer_run_shares_the_stable_phase(each: Schedule, more: int) -> None:
    settings = each.config.model_dump()
    longer = schedule(each.total_steps + more, **settings)
    constant = schedule(each.total_steps, **{**settings, "schedule": "constant"})
    start = each.decay_start
    assert start is not None
    for step in range(start):
        assert each.rate(step) == longer.rate(step) == constant.rate(step)
    assert each.rate(start) <= constant.rate(start)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_steps(kind: str) -> None:
    settings = {"schedule": kind, "warmup": "2 %", "decay": "20 %", "learning_rate": 3e-3, "min_learning_rate": 1e-4}
    found = rates(10_000, **settings)
    assert len(found) == 10_000
    assert max(found) == found[199] == 3e-3
    assert (
        min(found[200:])
        == found[-1]
        == pytest.approx({"constant": 3e-3, "inverse_sqrt": 3e-3 * math.sqrt(0.02)}.get(kind, 1e-4))
    )
