"""Prompts of a run whose settings name none are how its validation documents begin."""

from typing import Any

import numpy as np
import pytest

from lmcore.dataset.stream import TokenStream
from lmcore.runs.sample_prompts import with_prompts
from lmcore.settings.config import SampleConfig
from tests.conftest import Prepared


def test_three_validation_documents_begin_with_them_each_time(prepared: Prepared) -> None:
    run = prepared.run()
    found = with_prompts(SampleConfig(tokens=7), run)
    tokenizer, documents = run.tokenizer(), TokenStream(run.dataset_folder, "validation").documents()
    texts = [tokenizer.decode(ids.tolist()) for ids, *_ in documents]
    assert found.tokens == 7
    assert len(set(found.prompts)) == 3
    assert all(any(text.startswith(prompt) and text != prompt for text in texts) for prompt in found.prompts)
    assert with_prompts(SampleConfig(tokens=7), run) == found


def test_prompts_that_are_given_stay(prepared: Prepared) -> None:
    assert with_prompts(SampleConfig(prompts=["", "a"]), prepared.run()).prompts == ["", "a"]


class _Characters:
    """A tokenizer of one byte a token."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["def f(x): pass", "def f(y): pass", "import os, sys"], ["def f", "impor"]),
        (["吾輩は猫である"], ["吾"]),
        (["a b\nc d e f g", "\n\n\n\n\n\n\n\n\n\n", "123 567 9 1"], ["a b", "123 5"]),
        (["\n\n\n\n\n\n", ""], [""]),
        (["1111111111", "2222222222", "3333333333", "4444444444"], ["11111", "22222", "33333"]),
    ],
)
def test_a_beginning_is_the_whole_characters_of_a_first_line(
    prepared: Prepared, monkeypatch: Any, documents: list[str], expected: list[str]
) -> None:
    run = prepared.run()
    ids = [np.frombuffer(text.encode() + b"\x00", np.uint8) for text in documents]
    monkeypatch.setattr(TokenStream, "first_by_hash", lambda _, count: ids[:count])
    monkeypatch.setattr(type(run), "tokenizer", lambda _: _Characters())
    assert with_prompts(SampleConfig(), run).prompts == expected
