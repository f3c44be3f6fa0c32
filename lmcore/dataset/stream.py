"""The ids of a dataset as one flat stream, and the two ways to cut it into blocks of T tokens: in order, or packed."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.shards import Shard
from lmcore.store.artifacts import read_manifest

IGNORED_LABEL = -100
"""Label that torch.nn.functional.cross_entropy ignores."""

Ids = npt.NDArray[np.int64]


def source_names(dataset: Path, split: str) -> list[str]:
    """The sources of a dataset that have documents in ``split``, sorted."""
    chunks = read_manifest(dataset)["chunks"]
    return sorted({chunk["source"] for chunk in chunks if chunk[split]["documents"]})


class TokenStream:
    """The ids of one split of a dataset, of one source or of all, memory-mapped, in the order of the chunks.

    Dropped documents are left out. Raises StoreError if a shard is missing or does not fit.
    """

    def __init__(self, dataset: Path, split: str, source: str | None = None) -> None:
        self._opened_with = (dataset, split, source)
        manifest = read_manifest(dataset)
        chunks = [chunk for chunk in manifest["chunks"] if source in (None, chunk["source"])]
        shards = [Shard.of_chunk(dataset.parent.parent, chunk, split, manifest["tokenizer_id"]) for chunk in chunks]
        kept = [shard.all_but(chunk[split]["dropped"]) for shard, chunk in zip(shards, chunks, strict=True)]
        self._shards = list(zip(shards, kept, strict=True))
        self.segments = [run for shard, kept in self._shards for run in _kept_runs(shard, kept)]
        self._starts = np.cumsum([0, *map(len, self.segments)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments alone: a worker process maps the files itself."""
        return TokenStream, self._opened_with

    def __len__(self) -> int:
        """Tokens."""
        return int(self._starts[-1])

    @property
    def eos_id(self) -> int:
        """The id that ends each document and is nowhere else."""
        return int(self._shards[0][0].metadata["eos_id"])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(int(shard.text_bytes[kept].sum()) for shard, kept in self._shards)

    def document_lengths(self) -> Ids:
        """Tokens of each document, EOS included."""
        return np.concatenate([np.diff(shard.offsets)[kept] for shard, kept in self._shards])

    def documents(self) -> Iterator[tuple[npt.NDArray[Any], int, int]]:
        """(ids with EOS, UTF-8 bytes of the text, hash) of each document."""
        for shard, kept in self._shards:
            for row in np.flatnonzero(kept).tolist():
                yield shard.ids(row), int(shard.text_bytes[row]), int(shard.hashes[row])

    def first_by_hash(self, count: int) -> list[npt.NDArray[Any]]:
        """The ids of the ``count`` documents with the smallest hashes."""
        found = []
        for number, (shard, kept) in enumerate(self._shards):
            rows = np.flatnonzero(kept)
            nearest = rows[np.argsort(shard.hashes[rows], kind="stable")[:count]]
            found += [(int(shard.hashes[row]), number, row) for row in nearest.tolist()]
        return [self._shards[number][0].ids(row) for _, number, row in sorted(found)[:count]]

    def hashes_in(self, starts: Ids, stops: Ids) -> list[int]:
        """The hashes of the documents that the token ranges from starts to stops (exclusive) touch."""
        ends = np.cumsum(self.document_lengths())
        hashes = np.concatenate([shard.hashes[kept] for shard, kept in self._shards])
        firsts, lasts = np.searchsorted(ends, starts, "right"), np.searchsorted(ends, stops - 1, "right")
        return [int(hash_) for first, last in zip(firsts, lasts, strict=True) for hash_ in hashes[first : last + 1]]

    def fill(self, rows: Iterable[npt.NDArray[Any]], starts: Ids) -> None:
        """Fill each row with the tokens from its start on.

        The stream is a ring: position -1 is its last token, an EOS, as before every other document.
        """
        starts = starts % len(self)
        numbers = np.searchsorted(self._starts, starts, side="right") - 1
        offsets = starts - self._starts[numbers]
        for row, number, offset in zip(rows, numbers.tolist(), offsets.tolist(), strict=True):
            filled = 0
            while filled < len(row):
                part = self.segments[number][offset : offset + len(row) - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                number, offset = (number + 1) % len(self.segments), 0


def _kept_runs(shard: Shard, kept: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[Any]]:
    """The tokens of a shard without its dropped documents, in as few views as possible."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]])))
    for first, stop in edges.reshape(-1, 2).tolist():
        yield shard.tokens[shard.offsets[first] : shard.offsets[stop]]


class StreamBlocks:
    """A stream cut every T tokens, across documents and shards, without its incomplete last block.

    Block i is tokens i * T to (i + 1) * T inclusive: T inputs, and T labels one ahead.
    """

    def __init__(self, stream: TokenStream, block_size: int) -> None:
        self.stream = stream
        self.block_size = block_size
        self.tokens = len(self) * block_size
        """Labels in all blocks."""

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.block_size)

    def document_hashes(self, indices: Ids) -> list[int]:
        """The hashes of the documents in blocks of these numbers."""
        starts = indices * self.block_size + 1
        return self.stream.hashes_in(starts, starts + self.block_size)

    def read(self, indices: Ids) -> tuple[Ids, Ids]:
        """Inputs and labels (B, T) of the B blocks of these numbers."""
        rows = np.empty((len(indices), self.block_size + 1), np.int64)
        self.stream.fill(rows, indices * self.block_size)
        return rows[:, :-1], rows[:, 1:]


class PackedBlocks:
    """Best-fit packing (Ding et al., arXiv 2404.10830): only a document longer than a block is cut.

    Each document goes, the longest first, into the block with the least room that still takes it; the remaining room is
    padding. A document of n ids, EOS last, takes n places: its inputs are EOS and all ids but the last, its labels are
    the ids. So each token of the stream is a label once. The plan takes 16 bytes a document, and 0.4 s for a million.
    """

    def __init__(self, stream: TokenStream, block_size: int) -> None:
        self.stream = stream
        self.block_size = block_size
        self.tokens = len(stream)
        """Labels in all blocks, without padding."""
        starts, lengths = _pieces(stream.document_lengths(), block_size)
        blocks = best_fit(lengths, block_size)
        order = np.argsort(blocks, kind="stable")
        self._starts, self._lengths = starts[order], lengths[order]
        self._edges = np.concatenate([[0], np.cumsum(np.bincount(blocks))])

    def __len__(self) -> int:
        return len(self._edges) - 1

    def document_hashes(self, indices: Ids) -> list[int]:
        """The hashes of the documents in blocks of these numbers."""
        pieces = _ranges(self._edges[indices], self._edges[indices + 1] - self._edges[indices])
        return self.stream.hashes_in(self._starts[pieces], self._starts[pieces] + self._lengths[pieces])

    def read(self, indices: Ids) -> tuple[Ids, Ids]:
        """Inputs and labels (B, T) of the B blocks of these numbers. Padding is EOS with ignored labels."""
        counts = self._edges[indices + 1] - self._edges[indices]
        pieces = _ranges(self._edges[indices], counts)
        lengths = self._lengths[pieces]
        ends = np.cumsum(lengths + 1)
        ids = np.empty(int((lengths + 1).sum()), np.int64)
        # The token before the piece is its first input.
        self.stream.fill(np.split(ids, ends)[:-1], self._starts[pieces] - 1)
        filled = np.bincount(np.repeat(np.arange(len(indices)), counts), lengths, len(indices))
        is_real = np.arange(self.block_size) < filled[:, None]
        inputs = np.full(is_real.shape, self.stream.eos_id)
        labels = np.full(is_real.shape, IGNORED_LABEL)
        inputs[is_real] = np.delete(ids, ends - 1)
        labels[is_real] = np.delete(ids, ends - 1 - lengths)
        return inputs, labels


def _ranges(starts: Ids, counts: Ids) -> Ids:
    """The numbers of many ranges, joined: starts 5 9, counts 2 3 -> 5 6 9 10 11."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def _pieces(documents: Ids, block_size: int) -> tuple[Ids, Ids]:
    """Starts in the stream and lengths of all pieces; none is longer than a block."""
    counts = -(-documents // block_size)
    offsets = _ranges(np.zeros_like(counts), counts) * block_size
    starts = np.repeat(np.cumsum(documents) - documents, counts) + offsets
    return starts, np.minimum(block_size, np.repeat(documents, counts) - offsets)


def best_fit(lengths: Ids, block_size: int) -> Ids:
    """The block of each piece, by best-fit decreasing.

    Pieces of equal length are placed together, into blocks with equal room, so the cost grows with different lengths.
    """
    order = np.argsort(-lengths, kind="stable")
    blocks = np.empty(len(lengths), np.int64)
    rooms: list[int] = []
    free: dict[int, list[Ids]] = {}  # blocks by the room that is left in them; ``rooms`` are its keys, sorted
    made = done = 0
    for length, count in zip(*(part[::-1].tolist() for part in np.unique(lengths, return_counts=True)), strict=True):
        end = done + count
        while done < end:
            least = bisect_left(rooms, length)
            if least < len(rooms):
                room = rooms[least]
                found = free[room].pop()
                if not free[room]:
                    del rooms[least], free[room]
            else:
                room, found = block_size, np.arange(made, made + -(-(end - done) // (block_size // length)))
                made += len(found)
            each = room // length
            placed = np.repeat(found[: end - done], each)[: end - done]
            blocks[order[done : done + len(placed)]] = placed
            done += len(placed)
            full, rest = divmod(len(placed), each)
            lefts = (room - each * length, found[:full]), (room - rest * length, found[full : full + 1])
            for left, some in (*lefts, (room, found[full + 1 :])):
                if left and len(some):
                    if left not in free:
                        insort(rooms, left)
                    free.setdefault(left, []).append(some)
    return blocks
