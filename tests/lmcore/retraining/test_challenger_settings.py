"""What a challenger is trained on: the shares of sources that are told apart by age."""

from pathlib import Path

import pytest

from lmcore.errors import ConfigError
from lmcore.retraining.challenge import from_scratch, replay_weights, unused
from lmcore.settings.config import CorpusConfig, DatasetConfig
from lmcore.settings.retraining import RetrainConfig

TOKENS = {"web (old)": 600, "web (new)": 200, "wiki (old)": 100}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (DatasetConfig(), {"web (old)": 0.9 * 6 / 7, "wiki (old)": 0.9 / 7}),
        (DatasetConfig(weights={"web": 1, "wiki": 3}), {"web (old)": 0.9 / 4, "wiki (old)": 0.9 * 3 / 4}),
    ],
)
def test_within_an_age_sources_have_the_shares_that_were_asked_for(
    dataset: DatasetConfig, expected: dict[str, float]
) -> None:
    assert replay_weights(TOKENS, dataset, 0.9) == pytest.approx({**expected, "web (new)": 0.1})


def test_the_share_of_new_text_reads_as_people_write_it() -> None:
    assert replay_weights({"web (old)": 6, "web (new)": 2}, DatasetConfig(), 0.85)["web (new)"] == 0.15


def test_a_source_that_came_since_must_be_named() -> None:
    with pytest.raises(ConfigError, match="must name every source, and wiki has text now"):
        replay_weights(TOKENS, DatasetConfig(weights={"web": 1}), 0.9)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"web": 4, "wiki": 3}, {"web (old)": 3, "web (new)": 1, "wiki (old)": 3}),
    ],
)
def test_from_scratch_the_two_parts_of_a_source_are_mixed_as_the_one(
    given: dict[str, float], expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcore.retraining.challenge.tokens_by_source", lambda dataset: TOKENS)
    config = RetrainConfig(corpus=CorpusConfig(paths=["text"]), dataset=DatasetConfig(weights=given), run="name")
    run = from_scratch(config, Path("apart"))
    assert run.dataset.weights == expected
    assert (run.run, run.dataset.block_size) == ("", config.dataset.block_size)


@pytest.mark.parametrize(
    ("start", "fresh_tokenizer", "told"),
    [
        ("export", False, ["model.width", "tokenizer.vocab_size"]),
        ("scratch", False, ["tokenizer.vocab_size"]),
        ("export", True, []),
    ],
)
def test_what_a_challenger_cannot_have_is_told(start: str, fresh_tokenizer: bool, told: list[str]) -> None:
    champion = RetrainConfig().model_dump(mode="json")
    changed = {"model": {"width": 768}, "tokenizer": {"vocab_size": 500}, "retraining": {"start": start}}
    config = RetrainConfig.model_validate({**changed, "fresh_tokenizer": fresh_tokenizer})
    assert [line.split(" is ")[0] for line in unused(config, champion)] == told
    assert unused(RetrainConfig(), champion) == []


@pytest.mark.parametrize(
    ("start", "told"), [("export", ["train.max_steps is 700, retraining.budget"]), ("scratch", [])]
)
def test_the_length_of_the_first_model_is_said_to_be_unused(start: str, told: list[str]) -> None:
    config = RetrainConfig.model_validate({"train": {"max_steps": 700}, "retraining": {"start": start}})
    found = unused(config, RetrainConfig().model_dump(mode="json"))
    assert [line.removesuffix(" decides the length") for line in found] == told
