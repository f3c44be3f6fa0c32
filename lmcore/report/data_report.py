"""A dataset as a page for people: its ledger, its sources, and how its tokenizer fits it."""

from collections.abc import Iterator
from typing import Any

from lmcore import markdown
from lmcore.dataset.manifest import Dataset, text_ranges
from lmcore.dataset.mixture import Blocks, SourceCounts
from lmcore.dataset.shards import SPLITS
from lmcore.markdown import bold, escape, figure
from lmcore.report.tokenizer_report import dataset_report
from lmcore.store.artifacts import read_manifest
from lmcore.tokenizer.tokenizer import TokenizerInfo


def data_page(dataset: Dataset) -> str:
    """The dataset and its byte ledger as a page of its own."""
    manifest = read_manifest(dataset.folder)
    parts = [
        f"# Dataset {dataset.id}",
        *(f"**Warning:** {escape(warning)}." for warning in dataset.warnings),
        *data_sections(manifest),
        f"{dataset.chunks_made} of {dataset.chunks} chunks were new; "
        f"{dataset.duplicate_documents:,} documents occur more than once; tokenizer {dataset.tokenizer_id}.",
        "## Sources",
        markdown.table(("source", "files", "documents", "tokens", "bytes of text"), _source_rows(manifest)),
    ]
    return "\n\n".join(parts) + "\n"


def _source_rows(manifest: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    chunks, spans = manifest["chunks"], dict(text_ranges(manifest))
    for source in sorted({chunk["source"] for chunk in chunks}):
        own = [chunk for chunk in chunks if chunk["source"] == source]
        files = {span["path"] for chunk in own for span in spans.get(chunk["key"], ())}
        totals = (
            sum(chunk[split][name] for chunk in own for split in SPLITS)
            for name in ("documents", "tokens", "text_bytes")
        )
        yield (source, f"{len(files):,}", *(f"{total:,}" for total in totals))


def data_sections(manifest: dict[str, Any], blocks: Blocks | None = None) -> list[str]:
    """The dataset and its byte ledger as markdown."""
    splits = manifest["splits"]
    longest = max(chunk[split]["longest_bytes"] for chunk in manifest["chunks"] for split in splits)
    counts = [(name, *(f"{split[key]:,}" for key in split)) for name, split in splits.items()]
    sizes = (
        f"Longest document {longest:,} bytes; {len(manifest['chunks'])} chunks; "
        f"{manifest['ledger']['stored_bytes']:,} bytes on disk."
    )
    return [
        markdown.table(("split", "documents", "tokens", "bytes of text"), counts),
        sizes,
        markdown.table(("bytes", ""), _ledger_rows(manifest["ledger"])),
        *_files_beside(manifest["ledger"]),
        *_ledger_sentences(manifest["ledger"]),
        *(_blocks(blocks) if blocks is not None else ()),
    ]


def _ledger_rows(ledger: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "read", f"{ledger['source_bytes']:,}"
    yield "in documents", f"{ledger['document_bytes']:,}"
    yield "separators", f"{ledger['separator_bytes']:,}"
    for reason, row in ledger["skipped"].items():
        yield f"skipped: {reason} ({row['pieces']:,} pieces)", f"{row['bytes']:,}"
    yield bold("unaccounted"), bold(f"{ledger['unaccounted_bytes']:,}")


def _files_beside(ledger: dict[str, Any]) -> Iterator[str]:
    if beside := ledger.get("beside"):
        rows = ((f".{suffix}", f"{row[0]:,}", f"{row[1]:,}") for suffix, row in sorted(beside.items()))
        yield "Files that match no pattern of corpus.include:"
        yield markdown.table(("suffix", "files", "bytes"), rows)


def _ledger_sentences(ledger: dict[str, Any]) -> Iterator[str]:
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
        head = ("source", "documents", "tokens", "bytes of text", "share of training")
        yield markdown.table(head, (_source_row(name, row) for name, row in blocks.sources.items()))


def _source_row(name: str, source: SourceCounts) -> tuple[str, ...]:
    return (name, f"{source.documents:,}", f"{source.tokens:,}", f"{source.text_bytes:,}", f"{source.share:.1%}")


def tokenizer_page(dataset: Dataset) -> str:
    """The dataset's tokenizer, and how well it fits the text."""
    info = TokenizerInfo.open(dataset.store / "tokenizers" / dataset.tokenizer_id)
    rows = ((name.replace("_", " "), figure(value)) for name, value in info.model_dump(exclude={"id"}).items())
    fit = dataset_report(dataset.folder, dataset.tokenizer_id).markdown()
    return f"# Tokenizer {info.id}\n\n{markdown.table(('figure', ''), rows)}\n\n{fit}\n"
