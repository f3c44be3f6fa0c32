"""The same batches at any position, for any ranks and workers, with boundaries that a model keeps to."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.dataset.loader import document_boundaries, loader, prefetch, to_device
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.mixture import Mixture, open_blocks, shuffled
from lmcore.dataset.stream import StreamBlocks, TokenStream
from lmcore.model.model import new_model
from lmcore.settings.config import DatasetConfig
from tests.conftest import EOS, REPOSITORY, Prepared, WriteDataset


def plain(dataset: Dataset, **settings: Any) -> Mixture:
    return open_blocks(dataset.folder, DatasetConfig(block_size=16, **settings))


@settings(max_examples=30)
@given(
    first=st.integers(0, 10_000),
    count=st.integers(1, 700),
    batch=st.integers(1, 9),
    window=st.integers(1, 50),
    shuffle=st.booleans(),
)
def test_batches_are_those_of_one_long_sequence_wherever_they_start(
    many_chunks: Dataset, first: int, count: int, batch: int, window: int, shuffle: bool
) -> None:
    blocks, whole = plain(many_chunks), StreamBlocks(TokenStream(many_chunks.folder, "train"), 16)
    n = len(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmcore.dataset.loader._ORDER_WINDOW", window)
        rows = [
            row
            for one in loader(blocks, batch, first_block=first, last_block=first + count, seed=3, shuffle=shuffle)
            for row in one["input_ids"].tolist()
        ]
    order = [
        int(shuffled(np.array([place % n]), n, 3, place // n)[0]) if shuffle else place % n
        for place in range(first, first + count)
    ]
    assert rows == whole.read(np.array(order))[0].tolist()


def test_an_epoch_is_every_block_once_and_the_next_has_another_order(prepared: Prepared) -> None:
    whole = StreamBlocks(TokenStream(prepared.dataset.folder, "train"), 16)
    n = len(whole)
    rows = [
        tuple(row)
        for batch in loader(plain(prepared.dataset), 7, first_block=0, last_block=2 * n, seed=0, shuffle=True)
        for row in batch["input_ids"].tolist()
    ]
    everything = sorted(map(tuple, whole.read(np.arange(n))[0].tolist()))
    assert sorted(rows[:n]) == sorted(rows[n:]) == everything
    assert rows[:n] != rows[n:]


# --- ranks and workers ---


@settings(max_examples=30)
@given(first=st.integers(0, 500), count=st.integers(1, 90), batch=st.integers(1, 20), world=st.integers(1, 5))
def test_ranks_partition_every_batch(many_chunks: Dataset, first: int, count: int, batch: int, world: int) -> None:
    blocks = plain(many_chunks)

    def batches(**share: int) -> list[dict[str, torch.Tensor]]:
        return list(loader(blocks, batch, first_block=first, last_block=first + count, seed=3, **share))

    whole, parts = batches(), [batches(rank=rank, world=world) for rank in range(world)]
    assert [len(part) for part in parts] == [len(whole)] * world
    for number, expected in enumerate(whole):
        rows = len(expected["labels"])
        for rank in range(world):
            mine = parts[rank][number]
            assert len(mine["labels"]) == -(-rows // world), "all ranks have the same number"
            own = len(range(rank, rows, world))
            assert all(torch.equal(mine[name][:own], tensor[rank::world]) for name, tensor in expected.items())
            assert (mine["labels"][own:] == -100).all(), "and learn nothing from what fills up"


LOAD_IN_WORKERS = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from lmcore.settings.config import DatasetConfig
from lmcore.dataset.loader import Batches
from lmcore.dataset.mixture import open_blocks

folder, workers, rank, world = Path(sys.argv[1]), *map(int, sys.argv[2:])
blocks = open_blocks(folder, DatasetConfig(block_size=16))
batches = Batches(blocks, 6, first_block=5, last_block=70, seed=1, rank=rank, world=world)
options = {"num_workers": workers, "prefetch_factor": 2} if workers else {}
for batch in DataLoader(batches, batch_size=None, **options):
    print(batch["input_ids"].tolist())
"""


@pytest.mark.parametrize(("workers", "rank", "world"), [(0, 0, 1), (1, 0, 1), (3, 1, 2)])
def test_workers_give_the_batches_of_one_process(prepared: Prepared, workers: int, rank: int, world: int) -> None:
    # In a process of its own: workers are forked, and other tests leave servers' threads in this one.
    arguments = map(str, (prepared.dataset.folder, workers, rank, world))
    command = [sys.executable, "-c", LOAD_IN_WORKERS, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = loader(plain(prepared.dataset), 6, first_block=5, last_block=70, seed=1, rank=rank, world=world)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [one["input_ids"].tolist() for one in expected]


def test_the_first_batch_anywhere_reads_its_own_blocks_only(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TokenStream(prepared.dataset.folder, "train")
    segment = np.broadcast_to(np.uint16(7), 10**9)  # a stream of 10**15 tokens in a few bytes
    monkeypatch.setattr(stream, "segments", [segment] * 10**6)
    monkeypatch.setattr(stream, "_starts", np.arange(10**6 + 1) * 10**9)
    blocks = plain(prepared.dataset)
    blocks.sources["corpus"].stream = stream
    blocks.blocks_per_epoch["corpus"] = len(blocks.sources["corpus"])
    read: list[int] = []
    fill = stream.fill
    monkeypatch.setattr(stream, "fill", lambda rows, starts: read.extend(starts // 16) or fill(rows, starts))
    position = 3 * len(blocks) - 5
    batch = next(loader(blocks, 8, first_block=position, last_block=position + 10**12, seed=0))
    assert batch["labels"].shape == (8, 16)
    assert len(read) == 8
    assert max(read) > 10**12


# --- documents in a block ---


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
@settings(max_examples=30)
@given(documents=st.lists(st.lists(st.integers(6, 99), max_size=20), min_size=2, max_size=15), size=st.integers(2, 12))
def test_documents_are_numbered_and_positions_restart(
    write_dataset: WriteDataset, documents: list[list[int]], size: int, packing: Any
) -> None:
    folder = write_dataset([("corpus", [*documents, [9] * size])])
    blocks = open_blocks(folder, DatasetConfig(block_size=size, packing=packing, shuffle=False))
    count = len(blocks)
    for batch in loader(blocks, 4, first_block=0, last_block=count, seed=0, shuffle=False, document_ids=True):
        lists = {name: tensor.tolist() for name, tensor in batch.items()}
        for inputs, labels, positions, numbers in zip(*lists.values(), strict=True):
            number = place = 0
            for column, one in enumerate(inputs):
                is_padding = column > 0 and labels[column - 1] == -100
                begins = column > 0 and not is_padding and (one == EOS or one != labels[column - 1])
                number, place = (number + 1, 0) if begins else (number, place + (column > 0))
                assert (numbers[column], positions[column]) == (number, place)


def test_a_packed_remainder_is_a_document_of_its_own(write_dataset: WriteDataset) -> None:
    folder = write_dataset([("corpus", [[20, 21], [10, 11, 12, 13, 14, 15, 16]])])
    blocks = open_blocks(folder, DatasetConfig(block_size=6, packing="best_fit", shuffle=False))
    batch = next(loader(blocks, 2, first_block=0, last_block=2, seed=0, shuffle=False, document_ids=True))
    assert {name: tensor.tolist()[1] for name, tensor in batch.items()} == {
        "input_ids": [EOS, 20, 21, 15, 16, EOS],
        "labels": [20, 21, EOS, 16, EOS, -100],
        "position_ids": [0, 1, 2, 0, 1, 0],
        "document_ids": [0, 0, 0, 1, 1, 2],
    }


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_have_the_logits_they_have_alone(
    prepared: Prepared, architecture: str, attention: str
) -> None:
    model = new_model(prepared.run(model={"architecture": architecture, "dropout": 0.0})).eval()
    model.set_attn_implementation(attention)
    blocks = plain(prepared.dataset, packing="best_fit")
    batch = next(loader(blocks, 99, first_block=0, last_block=99, seed=0, document_ids=True))
    assert batch["document_ids"].max() > 1
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row, number in {(row, n) for row, ids in enumerate(batch["document_ids"].tolist()) for n in ids}:
            places = batch["document_ids"][row] == number
            alone = model(input_ids=batch["input_ids"][row, places][None], use_cache=False).logits
            torch.testing.assert_close(packed[row, places], alone[0], atol=1e-5, rtol=1e-5)


def test_boundaries_of_no_rows_are_empty() -> None:
    nothing = np.empty((0, 4), np.int64)
    assert document_boundaries(nothing, nothing, EOS)["position_ids"].shape == (0, 4)


# --- in a thread ---


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_made_in_a_thread_come_in_order_and_a_few_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = [len(made) - number for number in prefetch(items())]
    assert made == list(range(100))
    assert max(ahead) <= 4
    assert list(prefetch([])) == []
    assert prefetch_threads() == []


def test_the_thread_ends_with_a_consumer_that_stops() -> None:
    items = prefetch(iter(int, 1))  # without end
    assert next(items) == 0
    assert len(prefetch_threads()) == 1
    items.close()  # type: ignore[attr-defined]
    assert prefetch_threads() == []


def test_what_breaks_in_the_thread_is_raised_where_it_is_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert prefetch_threads() == []


def test_items_are_made_while_the_consumer_works() -> None:
    def slow() -> Iterator[float]:
        for _ in range(10):
            time.sleep(0.02)
            yield time.monotonic()

    waits = []
    for made in prefetch(slow()):
        time.sleep(0.03)
        waits.append(time.monotonic() - made)
    assert max(waits[3:]) > 0.035  # it stood ready before it was asked for


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_the_gpu_unchanged(prepared: Prepared) -> None:
    options: dict[str, Any] = {"first_block": 0, "last_block": 64, "seed": 0}
    expected = list(loader(plain(prepared.dataset), 8, **options))
    device = torch.device("cuda")
    ready = prefetch(to_device(batch, device) for batch in loader(plain(prepared.dataset), 8, **options))
    for there, here in zip(ready, expected, strict=True):
        assert all(torch.equal(there[name].cpu(), here[name]) for name in here)
