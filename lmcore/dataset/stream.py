"""The ids of a tokenized dataset as one flat stream, and blocks cut from it.

Shapes: B blocks, T tokens in a block.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.shards import Shard, shard_path
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
        shards_folder = dataset.parent.parent / "shards"
        self._shards: list[tuple[Shard, npt.NDArray[np.bool_]]] = []
        self.segments: list[npt.NDArray[Any]] = []
        for chunk in manifest["chunks"]:
            if source not in (None, chunk["source"]):
                continue
            shard = Shard(shard_path(shards_folder / chunk["key"], split), manifest["tokenizer_id"])
            kept = np.ones(len(shard), dtype=np.bool_)
            kept[chunk[split]["dropped"]] = False
            self._shards.append((shard, kept))
            self.segments += list(_kept_runs(shard, kept))
        lengths = [len(segment) for segment in self.segments]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._dtype = self.segments[0].dtype if self.segments else np.dtype(np.uint16)

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

    def block_count(self, block_size: int) -> int:
        """Complete blocks."""
        return max(0, (len(self) - 1) // block_size)

    def documents(self) -> Iterator[tuple[npt.NDArray[Any], int, int]]:
        """(ids with EOS, UTF-8 bytes of the text, hash) of each document."""
        for shard, kept in self._shards:
            for row in np.flatnonzero(kept).tolist():
                ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]
                yield ids, int(shard.text_bytes[row]), int(shard.hashes[row])

    def first_by_hash(self, count: int) -> list[npt.NDArray[Any]]:
        """The ids of the ``count`` documents with the smallest hashes."""
        found = []
        for number, (shard, kept) in enumerate(self._shards):
            rows = np.flatnonzero(kept)
            nearest = rows[np.argsort(shard.hashes[rows], kind="stable")[:count]]
            found += [(int(shard.hashes[row]), number, row) for row in nearest.tolist()]
        documents = [(self._shards[number][0], row) for _, number, row in sorted(found)[:count]]
        return [shard.tokens[shard.offsets[row] : shard.offsets[row + 1]] for shard, row in documents]

    def hashes_in(self, starts: Ids, stops: Ids) -> list[int]:
        """The hashes of the documents that the token ranges from starts to stops (exclusive) touch."""
        ends = np.cumsum(self.document_lengths())
        hashes = np.concatenate([shard.hashes[kept] for shard, kept in self._shards])
        firsts, lasts = np.searchsorted(ends, starts, "right"), np.searchsorted(ends, stops - 1, "right")
        return [int(hash_) for first, last in zip(firsts, lasts, strict=True) for hash_ in hashes[first : last + 1]]

    def gather(self, indices: Ids, block_size: int) -> npt.NDArray[Any]:
        """Blocks by their numbers: (B, T + 1) ids; block i is tokens i * T to (i + 1) * T inclusive."""
        out = np.empty((len(indices), block_size + 1), self._dtype)
        self.fill(out, indices * block_size)
        return out

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
    """A stream cut every ``block_size`` tokens, across documents and shards, without its incomplete last block."""

    def __init__(self, stream: TokenStream, block_size: int) -> None:
        self.stream = stream
        self.block_size = block_size
        self.tokens = len(self) * block_size
        """Labels in all blocks."""

    def __len__(self) -> int:
        return self.stream.block_count(self.block_size)

    def document_hashes(self, indices: Ids) -> list[int]:
        """The hashes of the documents in blocks, by the numbers of the blocks."""
        starts = indices * self.block_size + 1
        return self.stream.hashes_in(starts, starts + self.block_size)

    def read(self, indices: Ids) -> tuple[Ids, Ids]:
        """Inputs and labels (B, T) of blocks by their numbers."""
        rows = self.stream.gather(indices, self.block_size).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]
