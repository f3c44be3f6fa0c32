"""How well a tokenizer fits a dataset, counted from its shards.

Only the first ``MOST_TOKENS`` ids are counted, and the report says so. Therefore it takes about a second and a few
hundred MB for any dataset.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore import markdown
from lmcore.dataset.shards import SPLITS, Shard
from lmcore.store.artifacts import read_manifest
from lmcore.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 20_000_000

SourceShard = tuple[str, Shard]
"""A source and a shard of its documents."""


@dataclass(frozen=True)
class TokenizerReport:
    """Figures of a tokenizer on a dataset. EOS is not counted anywhere."""

    documents: int
    tokens: int
    text_bytes: int
    all_tokens: int
    """In the whole dataset, EOS included; more than ``tokens`` + ``documents`` if only a part was counted."""
    sources: dict[str, tuple[int, int, int]]
    """Documents, tokens and bytes of text of each, most bytes first."""
    partial_tokens: int
    """Ids that hold only part of a character, because no piece spells the whole one."""
    unknown_tokens: int
    pieces: int
    used_pieces: int
    longest: list[tuple[str, int]]
    """The 20 longest pieces in use, and how often."""

    def markdown(self) -> str:
        """The section of the tokenizer's page."""
        shares = {
            "ids that hold part of a character (byte fallback)": self.partial_tokens / max(1, self.tokens),
            "unknown ids": self.unknown_tokens / max(1, self.tokens),
            "vocabulary in use": self.used_pieces / self.pieces,
        }
        rows = [("all", self.documents, self.tokens, self.text_bytes)]
        rows += [(name, *figures) for name, figures in self.sources.items() if len(self.sources) > 1]
        part = self.documents + self.tokens < self.all_tokens
        lines = [
            "## How it fits the text",
            "",
            f"Counted over {'the first ' if part else ''}{self.tokens:,} tokens in {self.documents:,} documents"
            f"{f' of {self.all_tokens:,} tokens' if part else ''}.",
            "",
            markdown.table(("text", "documents", "tokens", "bytes", "bytes per token"), (_row(*row) for row in rows)),
            "",
            *(f"- {name}: {share:.3%}" for name, share in shares.items()),
            "",
            "The longest pieces in use, with their counts:",
            "",
            # Indented, so that no piece can leave the block; repr, so that none breaks its line.
            *(f"    {count:>9,}  {piece!r}" for piece, count in self.longest),
        ]
        return "\n".join(lines)


def _row(name: str, documents: int, tokens: int, text_bytes: int) -> tuple[str, ...]:
    return name, f"{documents:,}", f"{tokens:,}", f"{text_bytes:,}", f"{text_bytes / max(1, tokens):.2f}"


def dataset_report(dataset_folder: Path, tokenizer_id: str) -> TokenizerReport:
    """The report of a dataset in the store. Raises StoreError when a shard or the tokenizer is damaged."""
    store = dataset_folder.parent.parent
    manifest = read_manifest(dataset_folder)
    all_tokens = sum(split["tokens"] for split in manifest["splits"].values())
    tokenizer = Tokenizer(store / "tokenizers" / tokenizer_id)
    shards = (
        (chunk["source"], Shard.of_chunk(store, chunk, split, tokenizer_id))
        for chunk in manifest["chunks"]
        for split in SPLITS
    )
    return tokenizer_report(tokenizer, shards, all_tokens)


def tokenizer_report(tokenizer: Tokenizer, shards: Iterable[SourceShard], all_tokens: int) -> TokenizerReport:
    """Count ids and documents in the shards, up to MOST_TOKENS."""
    pieces = tokenizer.pieces()
    counts = np.zeros(len(pieces), np.int64)
    sources: dict[str, npt.NDArray[np.int64]] = {}
    for source, tokens, documents, text_bytes in _counted(shards):
        counts += np.bincount(tokens, minlength=len(pieces))
        figures = np.array([documents, len(tokens) - documents, text_bytes])
        sources[source] = sources.get(source, 0) + figures
    return _summary(tokenizer, pieces, counts, sources, all_tokens)


def _counted(shards: Iterable[SourceShard]) -> Iterator[tuple[str, npt.NDArray[Any], int, int]]:
    """Source, ids, documents and bytes of text, shard by shard: whole documents, about MOST_TOKENS at most."""
    left = MOST_TOKENS
    for source, shard in shards:
        rows = int(np.searchsorted(shard.offsets, left, "right")) - 1
        if rows:
            yield source, shard.tokens[: shard.offsets[rows]], rows, int(shard.text_bytes[:rows].sum())
        left -= int(shard.offsets[rows])
        if rows < len(shard):
            return


def _summary(
    tokenizer: Tokenizer, pieces: list[bytes], counts: npt.NDArray[Any], sources: dict[str, Any], all_tokens: int
) -> TokenizerReport:
    documents, tokens, text_bytes = sum(sources.values(), np.zeros(3, np.int64)).tolist()
    partial = [index for index, piece in enumerate(pieces) if piece.decode(errors="ignore").encode() != piece]
    texts = {i: pieces[i].decode(errors="replace") for i in np.flatnonzero(counts).tolist() if pieces[i]}
    longest = sorted(texts, key=lambda i: (-len(texts[i]), i))[:20]
    return TokenizerReport(
        documents=documents,
        tokens=tokens,
        text_bytes=text_bytes,
        all_tokens=all_tokens,
        sources={name: tuple(row.tolist()) for name, row in sorted(sources.items(), key=lambda item: -item[1][2])},
        partial_tokens=int(counts[partial].sum()),
        unknown_tokens=0 if tokenizer.unknown_id is None else int(counts[tokenizer.unknown_id]),
        pieces=len(pieces),
        used_pieces=int(np.count_nonzero(counts)),
        longest=[(texts[i], int(counts[i])) for i in longest],
    )
