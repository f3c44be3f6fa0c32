"""Free text in settings: a lone surrogate is refused, other text is not."""

from typing import Any

import pytest
from pydantic import ValidationError

from lmcore.settings.config import RunConfig

LONE = "a\ud83d"
"""As a browser sends an emoji that was cut in two."""


@pytest.mark.parametrize(
    "settings",
    [
        {"sample": {"prompts": ["whole", LONE]}},
        {"corpus": {"paths": [LONE]}},
        {"corpus": {"sources": {LONE: ["texts"]}}},
        {"corpus": {"sources": {"web": [LONE]}}},
        {"corpus": {"text_field": LONE}},
        {"dataset": {"weights": {LONE: 1}}},
        {"train": {"init_from": LONE}},
        {"store": LONE},
        {"run": LONE},
    ],
)
def test_a_lone_surrogate_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"U\+D83D, half of a character|unicode string"):
        RunConfig.model_validate(settings)


def test_all_other_text_is_taken() -> None:
    text = "改行\nと絵文字😀 \U0010ffff\ufffd"
    config = RunConfig.model_validate({"sample": {"prompts": [text]}, "corpus": {"sources": {text: [text]}}})
    assert config.sample.prompts == [text]
    assert config.corpus.sources == {text: [text]}
