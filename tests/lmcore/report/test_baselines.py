"""zlib and a 5-gram model on a run's own validation text, against implementations that are plainly right."""

import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcore.report.baselines
from lmcore.dataset.stream import TokenStream
from lmcore.report.baselines import END, baselines, ngram_bits, zlib_bits
from tests.conftest import Prepared

TEXTS = st.lists(st.binary(max_size=12) | st.text("ab", max_size=12).map(str.encode), min_size=1, max_size=6)


def symbols(texts: list[bytes]) -> np.ndarray:
    return np.array([symbol for text in texts for symbol in [*text, END]], np.int64)


def naive_bits(train: list[bytes], validation: list[bytes], order: int) -> float:
    """One symbol at a time, by dictionaries."""
    counts: Counter[tuple[int, ...]] = Counter()
    for text in train:
        padded = [END] * (order - 1) + [*text, END]
        for place in range(order - 1, len(padded)):
            for size in range(1, order + 1):
                counts[tuple(padded[place - size + 1 : place + 1])] += 1
    bits = 0.0
    for text in validation:
        padded = [END] * (order - 1) + [*text, END]
        for place in range(order - 1, len(padded)):
            chance = 1 / 257
            for size in range(1, order + 1):
                *context, symbol = padded[place - size + 1 : place + 1]
                after = [counts[(*context, other)] for other in range(257) if counts[(*context, other)]]
                if after:
                    chance = (counts[(*context, symbol)] + len(after) * chance) / (sum(after) + len(after))
            bits -= math.log2(chance)
    return bits


@given(TEXTS, TEXTS, st.integers(1, 5))
@settings(max_examples=40)
def test_the_n_gram_model_is_the_naive_one(train: list[bytes], validation: list[bytes], order: int) -> None:
    found = ngram_bits(symbols(train), symbols(validation), order)
    assert found == pytest.approx(naive_bits(train, validation, order), rel=1e-9)


@given(TEXTS)
@settings(max_examples=10)
def test_the_chances_of_all_symbols_are_one_together(train: list[bytes]) -> None:
    chances = [2 ** -ngram_bits(symbols(train), np.array([symbol]), 3) for symbol in range(257)]
    assert sum(chances) == pytest.approx(1)


def test_zlib_packs_the_text_without_the_ends() -> None:
    texts = [b"the same line\n" * 20, "学習".encode() * 9]
    assert zlib_bits(symbols(texts)) == 8 * len(zlib.compress(b"".join(texts), 9))


def test_a_run_has_its_baselines_of_its_own_text(prepared: Prepared, corpus: object) -> None:
    run = prepared.run()
    found = baselines(run)
    assert found is not None
    validation = TokenStream(run.dataset_folder, "validation")
    assert found.text_bytes == validation.text_bytes
    assert found.train_bytes == TokenStream(run.dataset_folder, "train").text_bytes
    assert 0 < found.ngram_bits_per_byte < 8
    text = b"".join(run.tokenizer().decode(ids[:-1].tolist()).encode() for ids, *_ in validation.documents())
    assert found.zlib_bits_per_byte == 8 * len(zlib.compress(text, 9)) / len(text)


def test_they_are_made_once_for_a_dataset(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared.run()
    first = baselines(run)
    monkeypatch.setattr(lmcore.report.baselines, "ngram_bits", lambda *_: 1 / 0)
    assert baselines(run) == first


def test_of_a_large_text_parts_are_used(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = baselines(prepared.run())
    monkeypatch.setattr(lmcore.report.baselines, "_TRAIN_BYTES", 8_000)
    monkeypatch.setattr(lmcore.report.baselines, "_VALIDATION_BYTES", 500)
    found = baselines(prepared.run())
    assert whole is not None
    assert found is not None
    assert 6_000 < found.train_bytes < 10_000
    assert 500 <= found.text_bytes < 1_500
    assert found.ngram_bits_per_byte == pytest.approx(whole.ngram_bits_per_byte, rel=0.4)
