"""What a model writes: repeatable, within its context, and no further than the end of the document."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from lmcore.model.generate import generate, write_samples
from lmcore.model.model import new_model, trained_model
from lmcore.runs.metrics import MetricsWriter, read_metrics
from lmcore.runs.prepare import prepare_run
from lmcore.settings.config import SampleConfig
from lmcore.training.train import train
from tests.conftest import Prepared, Trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> Any:
    return trained_model(trained.run, trained.training.checkpoint)


@pytest.fixture
def write(trained: Trained, model: Any) -> Any:
    """Sample with the finished run's model."""

    def write(prompt: str = "", **settings: Any) -> str:
        [text] = generate(model, trained.run.tokenizer(), SampleConfig(prompts=[prompt], **settings), 16)
        return text

    return write


class Scripted(torch.nn.Module):
    """A model whose next-token probabilities are given; it records what it sees, what it remembers included."""

    device = torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="sdpa")

    def __init__(self, probabilities: dict[int, float], vocabulary: int) -> None:
        super().__init__()
        self.logits = torch.full((vocabulary,), -1e9)
        for token, probability in probabilities.items():
            self.logits[token] = torch.tensor(probability).log()
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool, logits_to_keep: int) -> Any:
        ids = (past_key_values or []) + input_ids[0].tolist()
        self.seen.append(ids)
        cache = ids if use_cache else None
        return SimpleNamespace(logits=self.logits.expand(1, logits_to_keep, -1), past_key_values=cache)


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
    assert text == [tokenizer.decode([token] * 40)] != [""]
    assert [len(seen) for seen in model.seen] == [*range(1, 17), *[16] * 24]
    assert model.seen[0] == [tokenizer.eos_id]
    assert model.seen[-1] == [token] * 16


def test_writing_stops_at_the_end_of_the_document(trained: Trained) -> None:
    tokenizer = trained.run.tokenizer()
    model = Scripted({tokenizer.eos_id: 1.0}, 400)
    settings = SampleConfig(prompts=["学習"], tokens=40)
    assert generate(model, tokenizer, settings, 16) == ["学習"]  # type: ignore[arg-type]
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


# --- several prompts ---

PROMPTS = ["", "学習", "東京です。" * 8, "モデル data train", "、" * 15, "学習"]


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3"])
def sharp(request: pytest.FixtureRequest, prepared: Prepared) -> tuple[Any, Any]:
    """A model whose next tokens depend much on what came before, and its tokenizer."""
    run = prepared.run(model={"architecture": request.param, "layers": 2})
    model = new_model(run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model, run.tokenizer()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("tokens", [1, 9, 50])
def test_a_prompt_gives_what_it_gives_alone(sharp: tuple[Any, Any], temperature: float, tokens: int) -> None:
    settings = SampleConfig(prompts=PROMPTS, tokens=tokens, temperature=temperature, seed=3)
    alone = [
        generate(*sharp, settings.model_copy(update={"prompts": [prompt]}), block_size=16)[0] for prompt in PROMPTS
    ]
    assert generate(*sharp, settings, block_size=16) == alone
    assert len(set(alone)) > 1


def test_more_prompts_than_go_at_once_keep_their_order(sharp: tuple[Any, Any], monkeypatch: Any) -> None:
    settings = SampleConfig(prompts=PROMPTS, tokens=5)
    together = generate(*sharp, settings, block_size=16)
    monkeypatch.setattr("lmcore.model.generate._PROMPTS_AT_ONCE", 2)
    assert generate(*sharp, settings, block_size=16) == together


def test_what_was_read_is_remembered_as_if_it_were_read_again(sharp: tuple[Any, Any]) -> None:
    model, tokenizer = sharp
    ids = [tokenizer.eos_id]
    with torch.no_grad():
        while len(ids) < 30 and (len(ids) == 1 or ids[-1] != tokenizer.eos_id):
            ids.append(int(model.eval()(torch.tensor([ids[-16:]]), use_cache=False).logits[0, -1].argmax()))
    expected = tokenizer.decode([token for token in ids if token != tokenizer.eos_id])
    settings = SampleConfig(temperature=0, tokens=29)
    assert generate(model, tokenizer, settings, block_size=16) == [expected]


def test_an_attention_path_for_training_is_left_while_sampling(sharp: tuple[Any, Any]) -> None:
    model, tokenizer = sharp
    settings = SampleConfig(prompts=PROMPTS, tokens=20)
    expected = generate(model, tokenizer, settings, block_size=16)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it knows neither caches nor padding")

    AttentionInterface.register("for_training_only", refuse)
    model.set_attn_implementation("for_training_only")
    assert generate(model, tokenizer, settings, block_size=16) == expected
    assert model.config._attn_implementation == "for_training_only"
    model.set_attn_implementation("sdpa")


# --- samples while training ---


def samples(run: Any, model: Any, step: int) -> list[tuple[int, str]]:
    """(step, prompt) of the rows of samples.jsonl after sampling."""
    write_samples(run, model, step, MetricsWriter(run.metrics, step))
    return [(row["step"], row["prompt"]) for row in read_metrics(run.samples)]


def test_samples_of_a_resumed_run_are_there_once(prepared: Prepared, model: Any) -> None:
    run = prepared.run()
    object.__setattr__(run, "config", run.config.model_copy(update={"sample": SampleConfig(prompts=["学", "a"])}))
    assert samples(run, model, 2) == [(2, "学"), (2, "a")]
    assert samples(run, model, 4)[2:] == [(4, "学"), (4, "a")]
    before = run.samples.read_bytes()
    write_samples(run, model, 6, None)
    samples(run, model, 4)
    assert run.samples.read_bytes() == before
    assert samples(run, model, 2) == [(2, "学"), (2, "a")]
    assert all(row["text"].startswith(row["prompt"]) for row in read_metrics(run.samples))


def test_samples_are_shown_in_tensorboard(prepared: Prepared, model: Any, monkeypatch: Any) -> None:
    run = prepared.run()
    shown: list[tuple[str, str, int]] = []
    monkeypatch.setattr(MetricsWriter, "write_text", lambda _, *what: shown.append(what))
    write_samples(run, model, 7, MetricsWriter(run.metrics, 0))
    texts = [row["text"] for row in read_metrics(run.samples)]
    assert shown == [(f"samples/{number}", text, 7) for number, text in enumerate(texts, 1)]
    assert len(texts) == 3


def test_samples_and_tensorboard_leave_the_training_as_it_is(prepared: Prepared) -> None:
    config = prepared.changed(tensorboard=True)
    seen = SampleConfig(every=2, prompts=["学習", ""], tokens=20, temperature=1)
    config = config.model_copy(update={"run": "seen", "sample": seen})
    run = prepare_run(config, prepared.dataset, prepared.tokenizer, prepared.store)
    assert train(run).weights == train(prepared.run()).weights
    assert [row["step"] for row in read_metrics(run.samples)] == [2, 2, 4, 4, 6, 6]
    assert len(list((run.folder / "tensorboard").iterdir())) == 1
