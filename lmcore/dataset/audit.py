"""The audit of a finished dataset: whether it is complete, where each byte of the corpus is, and its repair."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.dataset.manifest import dataset_id, text_ranges, totals
from lmcore.dataset.shards import SPLITS, Shard, read_quarantine
from lmcore.dataset.tokenization import encode_again
from lmcore.errors import LMError, StoreError
from lmcore.store.artifacts import read_manifest, verify_artifact
from lmcore.tokenizer.tokenizer import TokenizerInfo

_COUNTS = ("documents", "document_bytes", "separator_bytes")
_STORED = ("stored_bytes", "undecodable_stored_bytes")


def problems(dataset: Path, only: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """(chunk key, what is wrong) of all chunks, or those in ``only``. Reads all bytes. The manifest's key is empty."""
    store = dataset.parent.parent
    try:
        manifest = read_manifest(dataset)
        tokenizer = TokenizerInfo.open(store / "tokenizers" / manifest["tokenizer_id"])
        tokenizer.verify()
    except LMError as error:
        yield "", str(error)
        return
    entries = manifest["chunks"]
    if dataset.name != manifest["id"] or dataset_id(entries, tokenizer.id) != manifest["id"]:
        yield "", f"{dataset} holds another dataset than its name says"
    if [entry["key"] for entry in entries] != sorted(entry["key"] for entry in entries):
        yield "", "the chunks are not in the order of their keys"
    if manifest["ledger"]["unaccounted_bytes"] or not _adds_up(manifest):
        yield "", "the ledger does not add up"
    for entry in {entry["key"]: entry for entry in entries if only is None or entry["key"] in only}.values():
        try:
            verify_artifact(store / "shards" / entry["key"])
            for split in SPLITS:
                _check_shard(Shard.of_chunk(store, entry, split, tokenizer.id), entry[split], tokenizer)
        except LMError as error:
            yield entry["key"], str(error)


def _adds_up(manifest: dict[str, Any]) -> bool:
    """Whether documents, separators and skips are those of the text ranges, and together the bytes that were read."""
    ledger, entries = manifest["ledger"], manifest["chunks"]
    spans = [span for entry in entries for span in entry["spans"]]
    skipped = sum(skip["length"] for skip in ledger["skips"])
    # An earlier version had a filter.
    kept = ledger["document_bytes"] + ledger["separator_bytes"] + ledger.get("filtered_bytes", 0)
    return (
        all(sum(span.get(name, 0) for span in spans) == ledger.get(name, 0) for name in _COUNTS)
        and skipped == ledger["skipped_bytes"] == sum(row["bytes"] for row in ledger["skipped"].values())
        and ledger["source_bytes"] == kept + skipped
        and totals(entries) == manifest["splits"]
    )


def _check_shard(shard: Shard, figures: dict[str, Any], tokenizer: TokenizerInfo) -> None:
    for name, count in shard.figures(shard.all_but(figures["dropped"])).items():
        if count != figures[name]:
            raise StoreError(f"{shard.path} has {count:,} {name}, the manifest says {figures[name]:,}")
    if len(shard.tokens) and int(shard.tokens.max()) >= tokenizer.vocab_size:
        raise StoreError(f"{shard.path} has id {shard.tokens.max()}, the tokenizer only {tokenizer.vocab_size:,}")
    if not np.array_equal(np.flatnonzero(shard.tokens == tokenizer.eos_id) + 1, shard.offsets[1:]):
        raise StoreError(f"{shard.path} has an end of text elsewhere than at the ends of its documents")


def repair(dataset: Path) -> list[str]:
    """Encode the damaged chunks again from the corpus, and return their keys. Nothing else of the dataset changes.

    Raises StoreError when the manifest itself is wrong, CorpusError when the corpus no longer holds their text.
    """
    found = dict(problems(dataset))
    wrong = found.get("")
    if wrong is None and found:
        encode_again(dataset, set(found))
        wrong = next((problem for _, problem in problems(dataset, set(found))), None)
    if wrong is not None:
        raise StoreError(f"{wrong}. Run the pipeline again to make the dataset again")
    return list(found)


def skipped_pieces(dataset: Path) -> Iterator[tuple[str, int, int, str, bytes]]:
    """(path, offset, bytes, reason, content) of each piece of a file that became no document.

    The content is empty where it was too long to be kept or could not be read.
    """
    manifest = read_manifest(dataset)
    kept: dict[tuple[str, int, str], bytes] = {}
    for key, spans in text_ranges(manifest):
        folder = dataset.parent.parent / "shards" / key
        starts = [row["start"] for row in read_manifest(folder)["ledger"]]
        for row in read_quarantine(folder):
            span = spans[row["span"]]
            kept[span["path"], row["offset"] + span["start"] - starts[row["span"]], row["reason"]] = row["content"]
    for skip in manifest["ledger"]["skips"]:
        path, offset, reason = skip["path"], skip["offset"], skip["reason"]
        yield path, offset, skip["length"], reason, kept.get((path, offset, reason), b"")


def ledger_by_file(dataset: Path) -> list[dict[str, Any]]:
    """A row for each file: documents, and bytes in them, between them, skipped and stored."""
    manifest = read_manifest(dataset)
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    read = {file["path"]: file for file in manifest.get("inputs", [])}
    for row in (*read.values(), *(span for _, spans in text_ranges(manifest) for span in spans)):
        files[row["path"]].update({name: row[name] for name in (*_COUNTS, *_STORED) if name in row})
    for skip in manifest["ledger"]["skips"]:
        lost = {} if skip["path"] in read else dict.fromkeys(_STORED, skip.get("stored_bytes", 0))
        files[skip["path"]].update({"skipped_pieces": 1, "skipped_bytes": skip["length"], **lost})
    names = (*_COUNTS, "skipped_pieces", "skipped_bytes", *_STORED)
    return [{"path": path, **{name: files[path][name] for name in names}} for path in sorted(files)]
