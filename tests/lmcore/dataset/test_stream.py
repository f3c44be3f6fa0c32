"""A dataset's ids are one stream, whatever it is made of on disk."""

import pickle
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.dataset.manifest import Dataset
from lmcore.dataset.shards import Shard, shard_path
from lmcore.dataset.stream import StreamBlocks, TokenStream, source_names
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
