"""What a model writes: repeatable, within its context, and no further than the end of the document."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmcore.checkpoint import trained_model
from lmcore.config import SampleConfig
from lmcore.generate import generate
from tests.conftest import Trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> Any:
    return trained_model(trained.run, trained.training.checkpoint)


@pytest.fixture
def write(trained: Trained, model: Any) -> Any:
    """Sample with the finished run's model."""
    return lambda **settings: generate(model, trained.run.tokenizer(), SampleConfig(**settings), 16)


class Scripted(torch.nn.Module):
    """A model whose next-token probabilities are given; it records what it is shown."""

    device = torch.device("cpu")

    def __init__(self, probabilities: dict[int, float], vocabulary: int) -> None:
        super().__init__()
        self.logits = torch.full((vocabulary,), -1e9)
        for token, probability in probabilities.items():
            self.logits[token] = torch.tensor(probability).log()
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        self.seen.append(input_ids[0].tolist())
        return SimpleNamespace(logits=self.logits.expand(1, input_ids.shape[1], -1))


def letters(trained: Trained) -> list[int]:
    """Four ids that stand for text."""
    ids = trained.run.tokenizer().encode("学習言語モデル東京さくらですます")
    return list(dict.fromkeys(ids))[-4:]


def test_temperature_zero_needs_no_seed(write: Any) -> None:
    first, second = (write(temperature=0, seed=seed, tokens=40, prompt="学習") for seed in (1, 2))
    assert first == second


def test_the_seed_decides_the_draws(write: Any) -> None:
    texts = {seed: write(temperature=1.5, seed=seed, tokens=40) for seed in range(3)}
    assert texts == {seed: write(temperature=1.5, seed=seed, tokens=40) for seed in range(3)}
    assert len(set(texts.values())) == 3


def test_sampling_leaves_other_draws_and_the_mode_alone(write: Any, model: Any) -> None:
    before = torch.get_rng_state()
    model.train()
    write(tokens=5)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prompt", ["学習", "def  main():\n\t", " leading", "😀 é ＡＢＣ", "<unk></s>", "x" * 100])
def test_the_prompt_is_kept(write: Any, prompt: str) -> None:
    assert write(prompt=prompt, tokens=3).startswith(prompt)


def test_writing_goes_on_beyond_a_block_and_shows_the_model_at_most_one(trained: Trained) -> None:
    tokenizer, token = trained.run.tokenizer(), letters(trained)[0]
    model = Scripted({token: 1.0}, 400)
    text = generate(model, tokenizer, SampleConfig(tokens=40), 16)  # type: ignore[arg-type]
    assert text == tokenizer.decode([token] * 40) != ""
    assert [len(seen) for seen in model.seen] == [*range(1, 17), *[16] * 24]
    assert model.seen[0] == [tokenizer.eos_id]
    assert model.seen[-1] == [token] * 16


def test_writing_stops_at_the_end_of_the_document(trained: Trained) -> None:
    tokenizer = trained.run.tokenizer()
    model = Scripted({tokenizer.eos_id: 1.0}, 400)
    assert generate(model, tokenizer, SampleConfig(prompt="学習", tokens=40), 16) == "学習"  # type: ignore[arg-type]
    assert len(model.seen) == 1


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 2}, 2),
        ({"top_k": 0}, 4),
        ({"top_k": 10_000}, 4),
        ({"top_k": 0, "top_p": 0.3}, 1),
        ({"top_k": 0, "top_p": 0.65}, 2),
        ({"top_k": 1, "top_p": 0.99}, 1),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest(trained: Trained, settings: dict[str, Any], allowed: int) -> None:
    tokenizer, tokens = trained.run.tokenizer(), letters(trained)
    model = Scripted(dict(zip(tokens, (0.4, 0.3, 0.2, 0.1), strict=True)), 400)
    drawn = SampleConfig(temperature=1, tokens=200, **settings)
    generate(model, tokenizer, drawn, 400)  # type: ignore[arg-type]
    assert set(model.seen[-1]) == {tokenizer.eos_id, *tokens[:allowed]}


def test_a_low_temperature_prefers_the_likeliest(trained: Trained) -> None:
    tokens = letters(trained)
    model = Scripted({tokens[0]: 0.6, tokens[1]: 0.4}, 400)
    generate(model, trained.run.tokenizer(), SampleConfig(temperature=0.02, tokens=100), 400)  # type: ignore[arg-type]
    assert model.seen[-1][1:] == [tokens[0]] * 99
