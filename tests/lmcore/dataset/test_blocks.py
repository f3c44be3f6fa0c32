"""Blocks: the tutorial's, the shards', and the training loader's, one and the same."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.blocks import BlockDataset, BufferedShuffleDataset, collate_fn
from lmcore.dataset.mixture import count_blocks
from lmcore.dataset.stream import TokenStream
from lmcore.errors import CorpusError
from lmcore.settings.config import DatasetConfig
from lmcore.tokenizer.tokenizer import Tokenizer
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
from lmcore.dataset.blocks import BlockDataset, BufferedShuffleDataset, collate_fn
from tests.lmcore.dataset.test_blocks import Numbers

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


def test_a_corpus_smaller_than_one_block_is_refused(prepared: Prepared) -> None:
    tokens = prepared.dataset.tokens
    assert count_blocks(prepared.dataset, DatasetConfig(block_size=tokens - 1)).train_blocks == 1
    with pytest.raises(
        CorpusError, match=rf"smaller than one block: {tokens} training tokens, a block needs {tokens + 1}"
    ):
        count_blocks(prepared.dataset, DatasetConfig(block_size=tokens))


def test_sources_are_counted_and_shared_out(mixed: Prepared) -> None:
    plain = count_blocks(mixed.dataset, DatasetConfig(block_size=16))
    assert {name: source.share for name, source in plain.sources.items()} == {
        name: source.tokens / mixed.dataset.tokens for name, source in plain.sources.items()
    }
    for name in ("documents", "tokens", "text_bytes"):
        assert sum(getattr(source, name) for source in plain.sources.values()) == getattr(mixed.dataset, name)
    wiki_alone = count_blocks(mixed.dataset, DatasetConfig(block_size=16, weights={"web": 0, "wiki": 2}))
    assert [source.share for source in wiki_alone.sources.values()] == [0, 1]
    assert wiki_alone.train_blocks == (plain.sources["wiki"].tokens - 1) // 16


def test_packing_leaves_no_tail(prepared: Prepared) -> None:
    packed = count_blocks(prepared.dataset, DatasetConfig(block_size=16, packing="best_fit"))
    assert packed.tail_tokens == 0
    assert packed.train_blocks * 16 * (1 - packed.padding) == pytest.approx(prepared.dataset.tokens)


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
