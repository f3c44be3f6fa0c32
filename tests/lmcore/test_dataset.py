"""Blocks: the tutorial's, the shards', and the training loader's, one and the same."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.config import CorpusConfig
from lmcore.corpus import describe, scan
from lmcore.dataset import BlockDataset, BufferedShuffleDataset, TokenStream, build_dataset, collate_fn, loader
from lmcore.documents import read_documents
from lmcore.errors import CorpusError
from lmcore.ledger import Ledger
from lmcore.shards import Shard, shard_path
from lmcore.shuffle import shuffled
from lmcore.store import manifest_bytes, prepare_store, read_manifest
from lmcore.tokenization import Dataset, tokenize
from lmcore.tokenizer import Tokenizer
from tests.conftest import REPOSITORY, Prepared

STREAM = (
    "10272 15 679 9 7 5234 745 27920 228 9723 120 1622 14738 3291 2832 13081 64 1199 531 1621 4954 2020 6112 8341 19 "
    "16 5658 58 220 3914 7"
)


class Numbers:
    """A tokenizer whose texts are their own ids."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def test_the_tutorials_stream_gives_its_six_blocks() -> None:
    blocks = list(BlockDataset.from_texts(Numbers(), [STREAM], 5))
    assert len(blocks) == 6
    assert blocks[0] == {"input_ids": [10272, 15, 679, 9, 7], "labels": [15, 679, 9, 7, 5234]}
    assert blocks[1]["input_ids"] == [5234, 745, 27920, 228, 9723]
    assert blocks[5] == {"input_ids": [16, 5658, 58, 220, 3914], "labels": [5658, 58, 220, 3914, 7]}


@given(
    texts=st.lists(st.lists(st.integers(6, 99), max_size=12), max_size=8),
    size=st.integers(1, 7),
    eos=st.sampled_from([None, 3]),
)
def test_blocks_are_the_stream_cut_and_one_ahead(texts: list[list[int]], size: int, eos: int | None) -> None:
    lines = [" ".join(map(str, ids)) for ids in texts]
    stream = [number for ids in texts for number in [*ids, *([eos] if eos else [])]]
    blocks = list(BlockDataset.from_texts(Numbers(), lines, size, drop_last=False, eos_token_id=eos))
    inputs = [number for block in blocks for number in block["input_ids"]]
    labels = [number for block in blocks for number in block["labels"]]
    known = max(0, len(stream) - 1)
    assert inputs[:known] == stream[:known]
    assert labels[:known] == stream[1:]
    assert set(inputs[known:]) <= {0}
    assert set(labels[known:]) <= {-100}
    assert all(len(block["input_ids"]) == len(block["labels"]) == size for block in blocks)
    whole = list(BlockDataset.from_texts(Numbers(), lines, size, eos_token_id=eos))
    assert whole == blocks[: known // size]


def test_a_file_gives_the_blocks_of_its_lines(tmp_path: Path) -> None:
    lines = ["1 2 3", "4 5", "6 7 8 9"]
    (tmp_path / "train.txt").write_text("\r\n".join([*lines, "", " "]))
    dataset = BlockDataset.from_file(Numbers(), tmp_path / "train.txt", 2)
    assert list(dataset) == list(BlockDataset.from_texts(Numbers(), lines, 2))
    assert list(dataset) == list(dataset)


LOAD_WITH_WORKERS = """
import sys
from torch.utils.data import DataLoader
from lmcore.dataset import BlockDataset, BufferedShuffleDataset, collate_fn
from tests.lmcore.test_dataset import Numbers

workers = int(sys.argv[1])
texts = [str(number) for number in range(1, 1003)]
dataset = BufferedShuffleDataset(BlockDataset.from_texts(Numbers(), texts, 5), buffer_size=100)
options = {"num_workers": workers, "prefetch_factor": 2} if workers else {}
for batch in DataLoader(dataset, batch_size=8, collate_fn=collate_fn, **options):
    for row in batch["input_ids"].tolist():
        print(row)
"""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_with_any_number_of_workers_every_block_comes_once(workers: int) -> None:
    # In a process of its own: workers are forked, and other tests leave servers' threads in this one.
    command = [sys.executable, "-c", LOAD_WITH_WORKERS, str(workers)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    texts = [str(number) for number in range(1, 1003)]
    expected = [block["input_ids"] for block in BlockDataset.from_texts(Numbers(), texts, 5)]
    assert found != expected
    assert sorted(found) == sorted(expected)


def test_the_shuffle_buffer_has_a_new_order_each_epoch_and_the_same_again() -> None:
    dataset = BufferedShuffleDataset(BlockDataset.from_texts(Numbers(), [STREAM] * 20, 2), buffer_size=10)
    first = list(dataset)
    assert list(dataset) == first
    dataset.set_epoch(1)
    assert list(dataset) != first


def test_collate_makes_int64_batches() -> None:
    batch = collate_fn(list(BlockDataset.from_texts(Numbers(), [STREAM], 5)))
    assert {key: (tuple(value.shape), str(value.dtype)) for key, value in batch.items()} == {
        "input_ids": ((6, 5), "torch.int64"),
        "labels": ((6, 5), "torch.int64"),
    }


def test_shards_hold_what_from_texts_yields_chunk_by_chunk(prepared: Prepared) -> None:
    tokenizer = Tokenizer(prepared.tokenizer.folder)
    config = prepared.config.corpus
    documents = [d for file in scan(config).files for d in read_documents(file, config, Ledger())]
    by_hash = {document.hash: document.text for document in documents}
    stream = TokenStream(prepared.dataset.folder, "train")
    texts = [by_hash[digest] for *_, digest in stream.documents()]
    on_the_fly = BlockDataset.from_texts(tokenizer, texts, 16, eos_token_id=tokenizer.eos_id)
    assert list(on_the_fly) == list(BlockDataset.from_shards(prepared.dataset.folder, 16))


def test_gather_is_the_flat_stream_across_segments(prepared: Prepared) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    assert len(stream.segments) >= 1
    flat = np.concatenate(stream.segments)
    # The same ids in many small pieces: blocks then cross several boundaries.
    stream.segments = np.split(flat, np.sort(np.random.default_rng(0).choice(len(flat), 200, replace=False)))
    stream._starts = np.concatenate([[0], np.cumsum([len(segment) for segment in stream.segments])])
    for size in (2, 7, 16):
        blocks = stream.gather(np.arange(stream.block_count(size)), size)
        assert np.array_equal(blocks[:, :-1].ravel(), flat[: blocks[:, :-1].size])
        assert np.array_equal(blocks[:, 1:].ravel(), flat[1 : blocks[:, 1:].size + 1])


@pytest.fixture(scope="module")
def many_chunks(corpus: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of many small chunks, in a store of its own."""
    config = CorpusConfig(paths=[str(corpus)], chunk_bytes=2000)
    store = prepare_store(tmp_path_factory.mktemp("many_chunks"))
    return tokenize(config, describe(scan(config), config), prepared.tokenizer, store)


@settings(max_examples=60, deadline=None)
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
    numbers = np.array(
        draw.choices(range(stream.block_count(size)), k=50) if stream.block_count(size) else [], np.int64
    )
    blocks = stream.gather(numbers, size)
    assert blocks.tolist() == [flat[number * size : (number + 1) * size + 1] for number in numbers.tolist()]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 40), batch=st.integers(1, 9), shuffle=st.booleans())
def test_any_position_is_reached_at_once(prepared: Prepared, step: int, batch: int, shuffle: bool) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")

    def batches(first_block: int) -> list[list[list[int]]]:
        found = loader(stream, 16, batch, first_block=first_block, last_block=41 * batch, seed=1, shuffle=shuffle)
        return [one["input_ids"].tolist() for one in found]

    assert batches(step * batch) == batches(0)[step:]


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 10_000), count=st.integers(1, 700), batch=st.integers(1, 9), window=st.integers(1, 50))
def test_batches_are_those_of_one_long_sequence_wherever_they_start(
    many_chunks: Dataset, first: int, count: int, batch: int, window: int
) -> None:
    stream = TokenStream(many_chunks.folder, "train")
    n = stream.block_count(16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmcore.dataset._ORDER_WINDOW", window)
        rows = [
            row
            for one in loader(stream, 16, batch, first_block=first, last_block=first + count, seed=3, shuffle=True)
            for row in one["input_ids"].tolist()
        ]
    order = [int(shuffled(np.array([place % n]), n, 3, place // n)[0]) for place in range(first, first + count)]
    assert rows == stream.gather(np.array(order), 16)[:, :-1].tolist()


def test_an_epoch_is_every_block_once_and_the_next_has_another_order(prepared: Prepared) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    n = stream.block_count(16)
    rows = [
        tuple(row)
        for batch in loader(stream, 16, 7, first_block=0, last_block=2 * n, seed=0, shuffle=True)
        for row in batch["input_ids"].tolist()
    ]
    everything = sorted(map(tuple, stream.gather(np.arange(n), 16)[:, :-1].tolist()))
    assert sorted(rows[:n]) == sorted(rows[n:]) == everything
    assert rows[:n] != rows[n:]


def test_a_corpus_smaller_than_one_block_is_refused(prepared: Prepared) -> None:
    tokens = prepared.dataset.tokens
    assert build_dataset(prepared.dataset, tokens - 1).train_blocks == 1
    with pytest.raises(
        CorpusError, match=rf"smaller than one block: {tokens} training tokens, a block needs {tokens + 1}"
    ):
        build_dataset(prepared.dataset, tokens)


@pytest.mark.parametrize("size", [0, -1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockDataset.from_texts(Numbers(), [STREAM], size)
    with pytest.raises(ValueError, match="at least 1"):
        BufferedShuffleDataset(BlockDataset.from_texts(Numbers(), [STREAM], 5), buffer_size=size)


def test_lines_that_are_no_text_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.txt").write_bytes(b"1 2 3\n\xff\n4 5\n")
    assert len(list(BlockDataset.from_file(Numbers(), tmp_path / "train.txt", 2))) == 2
    assert "left out 1 pieces: invalid_utf8" in caplog.text


def test_an_unknown_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        BlockDataset.from_file(Numbers(), tmp_path / "nowhere.txt", 2)


def test_it_works_in_workers_that_are_spawned(prepared: Prepared, tmp_path: Path) -> None:
    tokenizer = Numbers()
    (tmp_path / "numbers.txt").write_text("1 2 3\n4 5 6\n" * 20)
    for dataset in (
        BlockDataset.from_file(tokenizer, tmp_path / "numbers.txt", 4),
        BlockDataset.from_shards(prepared.dataset.folder, 16),
    ):
        copy = pickle.loads(pickle.dumps(dataset))
        assert list(copy) == list(dataset) != []
