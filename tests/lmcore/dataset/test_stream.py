"""A dataset's ids are one stream, whatever it is made of on disk."""

import pickle
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.dataset.manifest import Dataset
from lmcore.dataset.mixture import open_blocks
from lmcore.dataset.shards import Shard, shard_path
from lmcore.dataset.stream import IGNORED_LABEL, PackedBlocks, StreamBlocks, TokenStream, best_fit, source_names
from lmcore.settings.config import DatasetConfig
from lmcore.store.artifacts import manifest_bytes, read_manifest
from tests.conftest import EOS, Prepared, WriteDataset


def test_blocks_are_the_flat_stream_across_segments(prepared: Prepared) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    assert len(stream.segments) >= 1
    flat = np.concatenate(stream.segments)
    # The same ids in many small pieces: blocks then cross several boundaries.
    stream.segments = np.split(flat, np.sort(np.random.default_rng(0).choice(len(flat), 200, replace=False)))
    stream._starts = np.concatenate([[0], np.cumsum([len(segment) for segment in stream.segments])])
    for size in (2, 7, 16):
        blocks = StreamBlocks(stream, size)
        inputs, labels = blocks.read(np.arange(len(blocks)))
        assert np.array_equal(inputs.ravel(), flat[: inputs.size])
        assert np.array_equal(labels.ravel(), flat[1 : labels.size + 1])


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0, 0.1, 0.5, 0.9, 1]), size=st.integers(1, 40))
def test_dropped_documents_are_as_if_they_were_not_there(
    many_chunks: Dataset, seed: int, share: float, size: int
) -> None:
    draw = random.Random(seed)
    manifest = read_manifest(many_chunks.folder)
    assert len(manifest["chunks"]) > 3
    kept: list[list[int]] = []
    for chunk in manifest["chunks"]:
        shard = Shard(shard_path(many_chunks.folder.parent.parent / "shards" / chunk["key"], "train"))
        chunk["train"]["dropped"] = [row for row in range(len(shard)) if draw.random() < share]
        rows = [row for row in range(len(shard)) if row not in chunk["train"]["dropped"]]
        kept += [shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist() for row in rows]
    folder = many_chunks.folder.with_name("with_drops")
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    stream = TokenStream(folder, "train")
    flat = [number for ids in kept for number in ids]
    assert [ids.tolist() for ids, *_ in stream.documents()] == kept
    assert len(stream) == len(flat)
    blocks = StreamBlocks(stream, size)
    numbers = np.array(draw.choices(range(len(blocks)), k=50) if len(blocks) else [], np.int64)
    inputs, labels = blocks.read(numbers)
    assert inputs.tolist() == [flat[number * size : (number + 1) * size] for number in numbers.tolist()]
    assert labels.tolist() == [flat[number * size + 1 : (number + 1) * size + 1] for number in numbers.tolist()]


def test_a_stream_of_one_source_is_its_chunks(write_dataset: WriteDataset) -> None:
    folder = write_dataset([("web", [[10, 11], [12]]), ("wiki", [[20]]), ("web", [[13]]), ("empty", [])])
    assert source_names(folder, "train") == ["web", "wiki"]
    stream = TokenStream(folder, "train", "web")
    assert [ids.tolist() for ids, *_ in stream.documents()] == [[10, 11, EOS], [12, EOS], [13, EOS]]
    assert stream.document_lengths().tolist() == [3, 2, 2]
    assert (len(stream), stream.eos_id, stream.text_bytes) == (7, EOS, 4)
    assert len(TokenStream(folder, "train")) == 9
    ring = np.empty((1, 4), np.int64)
    stream.fill(ring, np.array([-1]))
    assert ring.tolist() == [[EOS, 10, 11, EOS]]


def test_a_pickled_stream_holds_no_ids(prepared: Prepared) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    copy = pickle.dumps(stream)
    assert len(copy) < 1000
    assert np.array_equal(pickle.loads(copy).segments[0], stream.segments[0])


def test_the_first_documents_by_hash_are_those_of_the_smallest_hashes(prepared: Prepared) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    documents = sorted((hash_, ids.tolist()) for ids, _, hash_ in stream.documents())
    assert [ids.tolist() for ids in stream.first_by_hash(3)] == [ids for _, ids in documents[:3]]
    assert len(stream.first_by_hash(10**6)) == len(documents)


# --- packing ---


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
