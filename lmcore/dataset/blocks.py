"""Blocks of token ids for training: ``BlockDataset``, a shuffle buffer and ``collate_fn``.

A block is ``block_size`` input ids with ``labels`` one ahead, so neighbouring blocks share one token:

    ids 3 1 4 1 5 9 2, block_size 3 ->  input_ids 3 1 4, labels 1 4 1
                                        input_ids 1 5 9, labels 5 9 2

Blocks are cut on the fly from texts, as an iterable for torch's DataLoader, or from a tokenized dataset. The training
reads whole batches instead (``lmcore.dataset.loader``). Shapes: B blocks in a batch, T tokens in a block.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.stream import IGNORED_LABEL, TokenStream
from lmcore.settings.config import CorpusConfig

Block = dict[str, list[int]]
_log = logging.getLogger(__name__)


class BlockDataset(IterableDataset[Block]):
    """Blocks ``{"input_ids": [...], "labels": [...]}`` cut from a stream of token ids.

    ``ids`` returns the stream for each pass, as sequences of any length. The incomplete last block is left out, or with
    ``drop_last=False`` padded with ``pad_id`` (labels -100). Of W DataLoader workers, worker w yields blocks w, w + W,
    w + 2W ...
    """

    def __init__(
        self, ids: Callable[[], Iterable[Sequence[int]]], block_size: int, drop_last: bool = True, pad_id: int = 0
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

        ``eos_token_id`` is added after each text, as in the shards; without it nothing is added. ``texts`` is iterated
        once for each pass, so several passes need a list, not a generator.
        """
        ids = partial(_encoded, tokenizer, texts, [] if eos_token_id is None else [eos_token_id])
        return cls(ids, block_size, drop_last, getattr(tokenizer, "pad_token_id", None) or 0)

    @classmethod
    def from_file(
        cls, tokenizer: Any, path: str | Path, block_size: int, drop_last: bool = True, eos_token_id: int | None = None
    ) -> Self:
        """``from_texts`` over the lines of a text file (or the texts of a .jsonl), plain or .gz.

        Line ends are not part of the texts. Blank lines and lines that are not UTF-8 are left out.
        """
        return cls.from_texts(tokenizer, _Lines(Path(path)), block_size, drop_last, eos_token_id)

    @classmethod
    def from_shards(cls, dataset: Path, block_size: int, split: str = "train", drop_last: bool = True) -> Self:
        """The blocks of a tokenized dataset (a folder datasets/<id>) in stored order."""
        return cls(partial(_stored, dataset, split), block_size, drop_last)

    def __iter__(self) -> Iterator[Block]:
        worker = get_worker_info()
        return islice(self._blocks(), worker.id, None, worker.num_workers) if worker else self._blocks()

    def _blocks(self) -> Iterator[Block]:
        size = self.block_size
        left: list[int] = []
        for ids in self._ids():
            left.extend(ids)
            whole = max(0, (len(left) - 1) // size) * size
            for start in range(0, whole, size):
                yield {"input_ids": left[start : start + size], "labels": left[start + 1 : start + size + 1]}
            del left[:whole]
        if len(left) > 1 and not self.drop_last:
            missing = size - (len(left) - 1)
            inputs, labels = left[:-1] + [self.pad_id] * missing, left[1:] + [IGNORED_LABEL] * missing
            yield {"input_ids": inputs, "labels": labels}


def _encoded(tokenizer: Any, texts: Iterable[str], end: list[int]) -> Iterator[list[int]]:
    for text in texts:
        yield [*tokenizer.encode(text), *end]


def _stored(dataset: Path, split: str) -> Iterator[list[int]]:
    return (array.tolist() for array in TokenStream(dataset, split).segments)


class _Lines:
    """The texts of one file, read again for each pass."""

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
    """Approximate shuffle of any iterable dataset: each item is drawn at random from a full buffer.

    The order is a function of (seed, epoch, worker); ``set_epoch`` gives another one. Memory: ``buffer_size`` items a
    worker.
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
