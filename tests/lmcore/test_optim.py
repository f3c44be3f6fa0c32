"""The learning rate of every step, and what decays."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import TrainConfig
from lmcore.optim import build_optimizer, learning_rate

COSINE = TrainConfig(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4)


def test_the_cosine_schedule_by_hand() -> None:
    rates = [learning_rate(step, 9, COSINE) for step in range(9)]
    half = 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[6] == pytest.approx(half)
    assert rates[8] == pytest.approx(0.1)


def test_constant_stays_at_the_peak_after_the_warm_up() -> None:
    config = COSINE.model_copy(update={"schedule": "constant"})
    assert [learning_rate(step, 7, config) for step in range(7)] == [0.25, 0.5, 0.75, 1, 1, 1, 1]


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    schedule=st.sampled_from(["cosine", "constant"]),
    data=st.data(),
)
def test_a_rate_is_positive_and_at_most_the_peak(total: int, warmup: int, schedule: str, data: st.DataObject) -> None:
    config = TrainConfig.model_validate({**COSINE.model_dump(), "warmup_steps": warmup, "schedule": schedule})
    step = data.draw(st.integers(0, total - 1))
    rate = learning_rate(step, total, config)
    assert 0 < rate <= 1
    if warmup <= step < total - 1:
        assert rate >= learning_rate(step + 1, total, config) >= 0.1 - 1e-12


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_only_trained_matrices_decay(name: str, kind: type) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    model[2].requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.3))  # type: ignore[arg-type]
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.3 if p.ndim == 2 else 0.0 for p in model.parameters() if p.requires_grad}
    assert decay == expected
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_no_empty_group_when_only_vectors_are_trained() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    [group] = build_optimizer(model, TrainConfig()).param_groups
    assert group["params"] == [model.bias]


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_decay_apart_from_the_gradient_or_in_it(name: str) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    settings = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, settings)
    model.weight.grad = torch.zeros(1, 1)
    optimizer.step()
    # With no gradient AdamW shrinks by rate * decay; Adam makes one normalized step of the rate's length.
    assert model.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) if name == "adamw" else 2 - 0.1, rel=1e-5)
