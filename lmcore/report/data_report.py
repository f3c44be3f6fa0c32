"""A dataset as pages for people: its ledger and its sources, and its tokenizer and how it fits the text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.manifest import Dataset, text_ranges
from lmcore.dataset.mixture import Blocks
from lmcore.dataset.shards import SPLITS
from lmcore.dataset.stream import TokenStream
from lmcore.markdown import bold, escape, figure, table
from lmcore.store.artifacts import read_manifest
from lmcore.tokenizer.tokenizer import Tokenizer, TokenizerInfo

_MOST_TOKENS = 20_000_000
"""Ids that are counted at most. They take about a second and a few hundred MB."""


def data_page(dataset: Dataset) -> str:
    """The dataset and its byte ledger as a page of its own."""
    manifest = read_manifest(dataset.folder)
    head = ("source", "files", "documents", "tokens", "bytes of text", "bytes per token")
    parts = [
        f"# Dataset {dataset.id}",
        *(f"**Warning:** {escape(warning)}." for warning in dataset.warnings),
        *data_sections(manifest),
        f"{dataset.chunks_made} of {dataset.chunks} chunks were new; "
        f"{dataset.duplicate_documents:,} documents occur more than once; tokenizer {dataset.tokenizer_id}.",
        "## Sources",
        table(head, _source_rows(manifest)),
    ]
    return "\n\n".join(parts) + "\n"


def _source_rows(manifest: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    chunks, spans = manifest["chunks"], dict(text_ranges(manifest))
    for source in sorted({chunk["source"] for chunk in chunks}):
        own = [chunk for chunk in chunks if chunk["source"] == source]
        files = {span["path"] for chunk in own for span in spans.get(chunk["key"], ())}
        documents, tokens, text_bytes = (
            sum(chunk[split][name] for chunk in own for split in SPLITS)
            for name in ("documents", "tokens", "text_bytes")
        )
        ratio = text_bytes / max(1, tokens - documents)  # without the EOS of each document
        yield source, *map(figure, (len(files), documents, tokens, text_bytes)), f"{ratio:.2f}"


def data_sections(manifest: dict[str, Any], blocks: Blocks | None = None) -> list[str]:
    """The dataset and its byte ledger as markdown."""
    splits, ledger = manifest["splits"], manifest["ledger"]
    longest = max(chunk[split]["longest_bytes"] for chunk in manifest["chunks"] for split in splits)
    counts = [(name, *map(figure, split.values())) for name, split in splits.items()]
    return [
        table(("split", "documents", "tokens", "bytes of text"), counts),
        f"Longest document {longest:,} bytes; {len(manifest['chunks'])} chunks; {ledger['stored_bytes']:,} bytes on "
        "disk.",
        table(("bytes", ""), _ledger_rows(ledger)),
        *_ledger_sentences(ledger),
        *(_blocks(blocks) if blocks is not None else ()),
    ]


def _ledger_rows(ledger: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "read", f"{ledger['source_bytes']:,}"
    yield "in documents", f"{ledger['document_bytes']:,}"
    yield "separators", f"{ledger['separator_bytes']:,}"
    for reason, row in ledger["skipped"].items():
        yield f"skipped: {reason} ({row['pieces']:,} pieces)", f"{row['bytes']:,}"
    yield bold("unaccounted"), bold(f"{ledger['unaccounted_bytes']:,}")


def _ledger_sentences(ledger: dict[str, Any]) -> Iterator[str]:
    if beside := ledger.get("beside"):
        yield "Files that match no pattern of corpus.include:"
        rows = ((f".{suffix}", *map(figure, row)) for suffix, row in sorted(beside.items()))
        yield table(("suffix", "files", "bytes"), rows)
    if units := ledger.get("documents_by_unit"):
        words = ", ".join(f"{unit} {count:,}" for unit, count in sorted(units.items()))
        yield f"Documents by unit: {words}."
    for reason, row in ledger["dropped"].items():
        yield f"{row['documents']:,} documents ({row['bytes']:,} bytes) were left out: {escape(reason)}."
    if ledger["normalized_documents"]:
        yield f"{ledger['normalized_documents']:,} documents were changed by Unicode normalization."
    if lost := ledger["undecodable_stored_bytes"]:
        yield f"{lost:,} bytes of files could not be read as text: damaged, or of another encoding."


def _blocks(blocks: Blocks) -> Iterator[str]:
    tail = f"{blocks.tail_tokens} tokens at the end do not fill a block."
    rest = f"{blocks.padding:.2%} are padding." if blocks.padding else tail
    yield f"{blocks.train_blocks:,} training blocks of {blocks.block_size} tokens; {rest}"
    if len(blocks.sources) > 1:
        rows = (
            (name, *map(figure, (each.documents, each.tokens, each.text_bytes)), f"{each.share:.1%}")
            for name, each in blocks.sources.items()
        )
        yield table(("source", "documents", "tokens", "bytes of text", "share of training"), rows)


def tokenizer_page(dataset: Dataset) -> str:
    """The dataset's tokenizer, and how well it fits the text. Raises StoreError when a shard is damaged."""
    info = TokenizerInfo.open(dataset.store / "tokenizers" / dataset.tokenizer_id)
    tokenizer = Tokenizer(info.folder)
    pieces, counts = tokenizer.pieces(), np.bincount(_first_ids(dataset.folder), minlength=tokenizer.vocab_size)
    counts[tokenizer.eos_id] = 0
    tokens = max(1, int(counts.sum()))
    partial = [index for index, piece in enumerate(pieces) if piece.decode(errors="ignore").encode() != piece]
    unknown = 0 if tokenizer.unknown_id is None else counts[tokenizer.unknown_id]
    rows = [(name.replace("_", " "), figure(value)) for name, value in info.model_dump(exclude={"id"}).items()]
    rows += [
        ("ids counted", f"the first {counts.sum():,}"),
        ("parts of characters (byte fallback)", f"{counts[partial].sum() / tokens:.3%}"),
        ("unknown ids", f"{unknown / tokens:.3%}"),
        ("vocabulary in use", f"{np.count_nonzero(counts) / len(pieces):.3%}"),
    ]
    return f"# Tokenizer {info.id}\n\n{table(('figure', ''), rows)}\n"


def _first_ids(dataset: Path) -> npt.NDArray[Any]:
    """The first ids of a dataset, _MOST_TOKENS at most."""
    segments = [segment for split in SPLITS for segment in TokenStream(dataset, split).segments]
    needed = np.searchsorted(np.cumsum([len(segment) for segment in segments]), _MOST_TOKENS) + 1
    return np.concatenate([np.empty(0, np.uint16), *segments[:needed]])[:_MOST_TOKENS]
