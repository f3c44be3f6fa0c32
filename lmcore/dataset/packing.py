"""Best-fit packing: blocks that cut no document that fits into one block.

Each document goes, the longest first, into the block with the least room that still takes it; the remaining room is
padding. Only a document longer than a block is cut, into full blocks and a remainder that is packed like a document.
Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830.

A document of n ids, EOS last, takes n places: its inputs are EOS and all ids but the last, its labels are the ids. So
each token of the stream is a label exactly once.

Shapes: B blocks, T tokens in a block.
"""

from bisect import bisect_left, insort

import numpy as np

from lmcore.dataset.stream import IGNORED_LABEL, Ids, TokenStream


class PackedBlocks:
    """A stream packed into blocks. The plan takes 16 bytes a document, and 0.4 s for a million documents."""

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
        """The hashes of the documents in blocks, by the numbers of the blocks."""
        pieces = _ranges(self._edges[indices], self._edges[indices + 1] - self._edges[indices])
        return self.stream.hashes_in(self._starts[pieces], self._starts[pieces] + self._lengths[pieces])

    def read(self, indices: Ids) -> tuple[Ids, Ids]:
        """Inputs and labels (B, T) of blocks by their numbers. Padding is EOS with ignored labels."""
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

    Pieces of equal length are placed together, into blocks with equal room. So the cost depends on the number of
    different lengths, not on the number of pieces.
    """
    order = np.argsort(-lengths, kind="stable")
    blocks = np.empty(len(lengths), np.int64)
    free, made, done = _Room(), 0, 0
    for length, count in zip(*(part[::-1].tolist() for part in np.unique(lengths, return_counts=True)), strict=True):
        end = done + count
        while done < end:
            room, found = free.take(length)
            if not room:
                room, found = block_size, np.arange(made, made + -(-(end - done) // (block_size // length)))
                made += len(found)
            each = room // length
            placed = np.repeat(found[: end - done], each)[: end - done]
            blocks[order[done : done + len(placed)]] = placed
            full, rest = divmod(len(placed), each)
            free.put(room - each * length, found[:full])
            free.put(room - rest * length, found[full : full + 1])
            free.put(room, found[full + 1 :])
            done += len(placed)
    return blocks


class _Room:
    """Blocks by their remaining room."""

    def __init__(self) -> None:
        self._rooms: list[int] = []
        self._blocks: dict[int, list[Ids]] = {}

    def put(self, room: int, blocks: Ids) -> None:
        if room and len(blocks):
            if room not in self._blocks:
                insort(self._rooms, room)
            self._blocks.setdefault(room, []).append(blocks)

    def take(self, length: int) -> tuple[int, Ids]:
        """The least room that takes ``length`` and some blocks that have it; 0 and none if there are none."""
        index = bisect_left(self._rooms, length)
        if index == len(self._rooms):
            return 0, np.empty(0, np.int64)
        room = self._rooms[index]
        blocks = self._blocks[room].pop()
        if not self._blocks[room]:
            del self._rooms[index], self._blocks[room]
        return room, blocks
