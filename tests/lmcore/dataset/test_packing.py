"""Every token is learnt once, and no document that fits a block is cut."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.dataset.mixture import open_blocks
from lmcore.dataset.stream import IGNORED_LABEL, PackedBlocks, TokenStream, best_fit
from lmcore.settings.config import DatasetConfig
from tests.conftest import EOS, WriteDataset

Documents = list[list[int]]
DOCUMENTS = st.lists(st.lists(st.integers(6, 99), max_size=30), min_size=1, max_size=25)


def fit_one_by_one(lengths: list[int], size: int) -> list[int]:
    """Best-fit decreasing as the book has it: the room left in every block."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= length]
        if not fitting:
            rooms.append(size)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=lambda index: rooms[index])] -= length
    return sorted(rooms)


@given(lengths=st.lists(st.integers(1, 20), max_size=60), size=st.integers(20, 40))
def test_placing_lengths_together_is_best_fit_decreasing(lengths: list[int], size: int) -> None:
    blocks = best_fit(np.array(lengths, np.int64), size)
    rooms = size - np.bincount(blocks, lengths).astype(np.int64)
    assert sorted(rooms.tolist()) == fit_one_by_one(lengths, size)


@settings(max_examples=60)
@given(documents=DOCUMENTS, cut=st.integers(0, 25), size=st.integers(2, 40))
def test_every_token_is_a_label_once_and_what_fits_is_whole(
    write_dataset: WriteDataset, documents: Documents, cut: int, size: int
) -> None:
    folder = write_dataset([("corpus", documents[:cut]), ("corpus", documents[cut:])])
    stream = TokenStream(folder, "train")
    packed = PackedBlocks(stream, size)
    inputs, labels = packed.read(np.arange(len(packed)))
    real = labels != IGNORED_LABEL
    assert Counter(labels[real].tolist()) == Counter(np.concatenate(stream.segments).tolist())
    assert int(real.sum()) == packed.tokens == len(stream)
    assert not (real[:, 1:] & ~real[:, :-1]).any()
    assert (inputs[~real] == EOS).all()
    rows = [list(zip(*pair, strict=True)) for pair in zip(inputs.tolist(), labels.tolist(), strict=True)]
    for document in documents:
        ids = [EOS, *document, EOS]
        expected = list(pairwise(ids))
        for start in range(0, len(expected), size):
            piece = expected[start : start + size]
            assert any(row[at : at + len(piece)] == piece for row in rows for at in range(size - len(piece) + 1))
    some = np.random.default_rng(size).integers(0, len(packed), 7)
    assert np.array_equal(packed.read(some)[1], labels[some])
    assert len(packed.read(some[:0])[0]) == 0


def test_the_share_of_padding_is_that_of_the_labels(write_dataset: WriteDataset) -> None:
    folder = write_dataset([("web", [[10] * 6, [11] * 5, [12]]), ("wiki", [[20] * 9])])
    blocks = open_blocks(folder, DatasetConfig(block_size=10, packing="best_fit"))
    _, labels = blocks.read(*blocks.order(np.arange(len(blocks)), 0, False))
    assert len(blocks) == 3
    assert blocks.padding == pytest.approx((labels == IGNORED_LABEL).mean()) == pytest.approx(1 - 25 / 30)


def test_a_million_documents_are_packed_in_seconds_with_hardly_any_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 10**6).astype(np.int64).clip(1, 1024)
    blocks = best_fit(lengths, 1024)
    assert np.bincount(blocks, lengths).max() <= 1024
    assert lengths.sum() / (blocks.max() + 1) / 1024 > 0.999
