"""Token ids to training blocks: ``BlockDataset``, a shuffle buffer, ``collate_fn`` and the training loader.

A block is ``block_size`` input ids with ``labels`` one ahead, so neighbouring blocks share one token:

    ids 3 1 4 1 5 9 2, block_size 3 ->  input_ids 3 1 4, labels 1 4 1
                                        input_ids 1 5 9, labels 5 9 2

Two ways lead to blocks. On the fly from texts, as an iterable for torch's DataLoader. Or from a
tokenized dataset, whose ids are one memory-mapped stream: there block i starts at token i * block_size, any
batch is reached in O(1), and ``loader`` gathers whole batches without a Python list.

Shapes: B blocks in a batch, T tokens in a block.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from lmcore.config import CorpusConfig
from lmcore.corpus import scan
from lmcore.documents import read_documents
from lmcore.errors import CorpusError
from lmcore.ledger import Ledger
from lmcore.shards import Shard, shard_path
from lmcore.shuffle import shuffled
from lmcore.store import Output, read_manifest
from lmcore.tokenization import Dataset

IGNORED_LABEL = -100
"""torch.nn.functional.cross_entropy leaves such labels out."""

Block = dict[str, list[int]]
_log = logging.getLogger(__name__)


class BlockDataset(IterableDataset[Block]):
    """Blocks ``{"input_ids": [...], "labels": [...]}`` cut from a stream of token ids.

    ``ids`` gives the stream afresh for every pass, as sequences of any length. The tail that fills no
    block is left out, or with ``drop_last=False`` padded with ``pad_id`` (labels -100). With several DataLoader
    workers, worker w of W yields blocks w, w + W, w + 2W ...: together each block once.
    """

    def __init__(
        self,
        ids: Callable[[], Iterable[Sequence[int]]],
        block_size: int,
        drop_last: bool = True,
        pad_id: int = 0,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}, needs at least 1")
        self._ids = ids
        self.block_size = block_size
        self.drop_last = drop_last
        self.pad_id = pad_id

    @classmethod
    def from_texts(
        cls,
        tokenizer: Any,
        texts: Iterable[str],
        block_size: int,
        drop_last: bool = True,
        eos_token_id: int | None = None,
    ) -> Self:
        """Tokenize on the fly with ``tokenizer.encode(text) -> ids``.

        Nothing is added between texts, unless ``eos_token_id`` is given: then it ends every text, as in
        the shards. ``texts`` is iterated once a pass; give a list, not a generator, for several passes.
        """
        ids = partial(_encoded, tokenizer, texts, [] if eos_token_id is None else [eos_token_id])
        return cls(ids, block_size, drop_last, getattr(tokenizer, "pad_token_id", None) or 0)

    @classmethod
    def from_file(
        cls,
        tokenizer: Any,
        path: str | Path,
        block_size: int,
        drop_last: bool = True,
        eos_token_id: int | None = None,
    ) -> Self:
        """``from_texts`` over the lines of a text file (or the texts of a .jsonl), plain or .gz.

        Line ends belong to no text; blank lines and lines that are no UTF-8 are left out.
        """
        return cls.from_texts(tokenizer, _Lines(Path(path)), block_size, drop_last, eos_token_id)

    @classmethod
    def from_shards(cls, dataset: Path, block_size: int, split: str = "train", drop_last: bool = True) -> Self:
        """The blocks of a tokenized dataset (a folder datasets/<id>) in stored order."""
        return cls(partial(_stored, dataset, split), block_size, drop_last)

    def __iter__(self) -> Iterator[Block]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index, block in enumerate(self._blocks()):
            if index % workers == mine:
                yield block

    def _blocks(self) -> Iterator[Block]:
        size = self.block_size
        left: list[int] = []
        for ids in self._ids():
            left.extend(ids)
            whole = max(0, (len(left) - 1) // size) * size
            for start in range(0, whole, size):
                yield {
                    "input_ids": left[start : start + size],
                    "labels": left[start + 1 : start + size + 1],
                }
            del left[:whole]
        if len(left) > 1 and not self.drop_last:
            missing = size - (len(left) - 1)
            yield {
                "input_ids": left[:-1] + [self.pad_id] * missing,
                "labels": left[1:] + [IGNORED_LABEL] * missing,
            }


def _encoded(tokenizer: Any, texts: Iterable[str], end: list[int]) -> Iterator[list[int]]:
    for text in texts:
        yield [*tokenizer.encode(text), *end]


def _stored(dataset: Path, split: str) -> Iterator[list[int]]:
    return (array.tolist() for array in TokenStream(dataset, split).segments)


class _Lines:
    """The texts of one file, read afresh for every pass."""

    def __init__(self, path: Path) -> None:
        self._config = CorpusConfig(paths=[str(path)], include=["*"], document="line")
        self._file = scan(self._config).files[0]

    def __iter__(self) -> Iterator[str]:
        ledger = Ledger()
        for document in read_documents(self._file, self._config, ledger):
            yield document.text
        for reason, row in ledger.by_reason().items():
            _log.warning("%s: left out %d pieces: %s", self._file.path, row["pieces"], reason)


class BufferedShuffleDataset(IterableDataset[Any]):
    """Approximate shuffle of any iterable dataset: draws at random from a buffer that it keeps full.

    The order is a function of (seed, epoch, worker); call ``set_epoch`` for a new one. Memory:
    ``buffer_size`` items a worker.
    """

    def __init__(self, dataset: IterableDataset[Any], buffer_size: int = 100, seed: int = 0) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size is {buffer_size}, needs at least 1")
        self.dataset = dataset
        self.buffer_size = buffer_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        draw = random.Random(f"{self.seed} {self.epoch} {worker.id if worker else 0}")
        buffer: list[Any] = []
        for item in self.dataset:
            if len(buffer) < self.buffer_size:
                buffer.append(item)
            else:
                index = draw.randrange(self.buffer_size)
                yield buffer[index]
                buffer[index] = item
        draw.shuffle(buffer)
        yield from buffer


def collate_fn(blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
    """Blocks to one batch: ``input_ids`` and ``labels``, each an int64 tensor (B, T)."""
    return {key: torch.tensor([block[key] for block in blocks]) for key in ("input_ids", "labels")}


class TokenStream:
    """The ids of one split of a dataset as one flat stream, chunk after chunk, memory-mapped.

    Dropped documents are not part of it. Raises StoreError when a shard is missing or does not fit.
    """

    def __init__(self, dataset: Path, split: str) -> None:
        manifest = read_manifest(dataset)
        shards_folder = dataset.parent.parent / "shards"
        self._shards: list[tuple[Shard, npt.NDArray[np.bool_]]] = []
        self.segments: list[npt.NDArray[Any]] = []
        for chunk in manifest["chunks"]:
            shard = Shard(shard_path(shards_folder / chunk["key"], split), manifest["tokenizer_id"])
            kept = np.ones(len(shard), dtype=np.bool_)
            kept[chunk[split]["dropped"]] = False
            self._shards.append((shard, kept))
            self.segments += list(_kept_runs(shard, kept))
        lengths = [len(segment) for segment in self.segments]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._dtype = self.segments[0].dtype if self.segments else np.dtype(np.uint16)

    def __len__(self) -> int:
        """Tokens."""
        return int(self._starts[-1])

    def block_count(self, block_size: int) -> int:
        """Whole blocks; the tail that fills none is not counted."""
        return max(0, (len(self) - 1) // block_size)

    def documents(self) -> Iterator[tuple[npt.NDArray[Any], int, int]]:
        """(ids with the EOS at the end, UTF-8 bytes of the text, hash) of every document."""
        for shard, kept in self._shards:
            for row in np.flatnonzero(kept).tolist():
                ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]
                yield ids, int(shard.text_bytes[row]), int(shard.hashes[row])

    def gather(self, indices: npt.NDArray[np.int64], block_size: int) -> npt.NDArray[Any]:
        """Blocks by their numbers: (B, T + 1) ids; block i is tokens i * T to (i + 1) * T inclusive."""
        out = np.empty((len(indices), block_size + 1), self._dtype)
        starts = indices * block_size
        numbers = np.searchsorted(self._starts, starts, side="right") - 1
        offsets = starts - self._starts[numbers]
        for row, number, offset in zip(out, numbers.tolist(), offsets.tolist(), strict=True):
            filled = 0
            while filled < len(row):
                part = self.segments[number][offset : offset + len(row) - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                number, offset = number + 1, 0
        return out


def _kept_runs(shard: Shard, kept: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[Any]]:
    """The tokens of a shard without its dropped documents, as few views as possible."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]])))
    for first, stop in edges.reshape(-1, 2).tolist():
        yield shard.tokens[shard.offsets[first] : shard.offsets[stop]]


class Blocks(Output):
    """What training will draw from a dataset, in figures."""

    dataset_id: str
    block_size: int
    train_blocks: int
    tail_tokens: int
    """Training tokens at the end of the stream that fill no block; never trained on."""
    validation_tokens: int

    def verify(self) -> None:
        """The shards belong to the dataset, whose own record is verified."""


def build_dataset(dataset: Dataset, block_size: int) -> Blocks:
    """Open the shards of both splits and count their blocks.

    Raises CorpusError when the training text is shorter than one block, StoreError when shards do not fit.
    """
    train, validation = TokenStream(dataset.folder, "train"), TokenStream(dataset.folder, "validation")
    blocks = train.block_count(block_size)
    if not blocks:
        raise CorpusError(
            f"the corpus is smaller than one block: {len(train)} training tokens, a block needs "
            f"{block_size + 1}. Give more text, or lower dataset.block_size (now {block_size})"
        )
    return Blocks(
        dataset_id=dataset.id,
        block_size=block_size,
        train_blocks=blocks,
        tail_tokens=len(train) - 1 - blocks * block_size,
        validation_tokens=len(validation),
    )


_ORDER_WINDOW = 16_384
"""Positions shuffled at once: the cost of numpy's calls is spread over many."""


def loader(
    stream: TokenStream,
    block_size: int,
    batch_size: int,
    *,
    first_block: int,
    last_block: int,
    seed: int,
    shuffle: bool,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the blocks at positions ``first_block`` to ``last_block`` (exclusive) of training.

    Position p is place p % n of epoch p // n, for n blocks in the stream, so the batches after any
    position are reached without reading those before it. Yields ``input_ids`` and ``labels``, int64 (B, T);
    the last batch may be short.
    """
    n = stream.block_count(block_size)
    window = max(batch_size, _ORDER_WINDOW // batch_size * batch_size)
    for start in range(first_block, last_block, window):
        positions = np.arange(start, min(start + window, last_block))
        order = positions % n
        if shuffle:
            for epoch in np.unique(positions // n).tolist():
                inside = positions // n == epoch
                order[inside] = shuffled(order[inside], n, seed, epoch)
        for offset in range(0, len(order), batch_size):
            rows = torch.from_numpy(stream.gather(order[offset : offset + batch_size], block_size).astype(np.int64))
            yield {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}
