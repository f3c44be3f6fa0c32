"""Questions about a finished dataset: is it whole, where did the bytes go, who has seen a document; and its repair."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmcore.config import CorpusConfig, RunConfig
from lmcore.corpus import open_corpus
from lmcore.encoding import QUARANTINE
from lmcore.errors import CorpusError, LMError, StoreError
from lmcore.shards import SPLITS, Shard, shard_path
from lmcore.store import hash_text, is_whole, open_sealed, read_manifest, remove
from lmcore.tokenization import Dataset, dataset_id, tokenize
from lmcore.tokenizer import TokenizerInfo

_ACCOUNT = ("documents", "document_bytes", "separator_bytes", "skipped_pieces", "skipped_bytes")


def find_dataset(store: Path, name: str) -> Path:
    """The folder of a dataset, by its id or its own path. Raises StoreError when there is none."""
    for folder in (store / "datasets" / name, Path(name)):
        if (folder / "manifest.json").is_file():
            return folder.absolute()
    raise StoreError(f"there is no dataset {name} in {store / 'datasets'}: give another id, or --store")


def problems(dataset: Path) -> Iterator[tuple[str, str]]:
    """(chunk key, what is wrong), reading every byte; the key is empty for what is wrong with the manifest."""
    try:
        manifest = read_manifest(dataset)
        tokenizer = TokenizerInfo.open(dataset.parent.parent / "tokenizers" / manifest["tokenizer_id"])
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
    for entry in {entry["key"]: entry for entry in entries}.values():
        folder = dataset.parent.parent / "shards" / entry["key"]
        try:
            open_sealed(folder)
            for split in SPLITS:
                _check_shard(Shard(shard_path(folder, split), tokenizer.id), entry[split], tokenizer)
        except LMError as error:
            yield entry["key"], str(error)


def _adds_up(manifest: dict[str, Any]) -> bool:
    """Documents, separators and skips are those of the spans and pieces, and together the bytes that were read."""
    account, entries = manifest["ledger"], manifest["chunks"]
    spans = [span for entry in entries for span in entry["spans"]]
    skipped = sum(skip["length"] for skip in account["skips"])
    return (
        all(sum(span[name] for span in spans) == account[name] for name in _ACCOUNT[:3])
        and skipped == account["skipped_bytes"] == sum(row["bytes"] for row in account["skipped"].values())
        and account["source_bytes"] == account["document_bytes"] + account["separator_bytes"] + skipped
        and all(
            sum(entry[split][name] for entry in entries) == total
            for split in SPLITS
            for name, total in manifest["splits"][split].items()
        )
    )


def _check_shard(shard: Shard, figures: dict[str, Any], tokenizer: TokenizerInfo) -> None:
    shard.verify()
    kept = np.delete(np.arange(len(shard)), figures["dropped"])
    counts = {
        "documents": len(kept),
        "tokens": int(np.diff(shard.offsets)[kept].sum()),
        "text_bytes": int(shard.text_bytes[kept].sum()),
    }
    for name, count in counts.items():
        if count != figures[name]:
            raise StoreError(f"{shard.path} has {count:,} {name}, the manifest says {figures[name]:,}")
    if len(shard.tokens) and int(shard.tokens.max()) >= tokenizer.vocab_size:
        raise StoreError(f"{shard.path} has id {shard.tokens.max()}, the tokenizer only {tokenizer.vocab_size:,}")
    if not np.array_equal(np.flatnonzero(shard.tokens == tokenizer.eos_id) + 1, shard.offsets[1:]):
        raise StoreError(f"{shard.path} has an end of text elsewhere than at the ends of its documents")


def repair(dataset: Path) -> tuple[list[str], Dataset]:
    """Encode exactly the damaged chunks again from the corpus; their keys, and the dataset.

    Raises StoreError when the manifest itself is damaged, CorpusError when the corpus no longer holds their text.
    """
    found = list(problems(dataset))
    for key, problem in found:
        if not key:
            raise StoreError(f"{problem}. Run the pipeline again to make the dataset anew")
    store = dataset.parent.parent
    manifest = read_manifest(dataset)
    for key, _ in found:
        folder = store / "shards" / key
        if is_whole(folder):  # which has removed it if not: then it was wrong when it was sealed
            remove(folder)
    config = CorpusConfig.model_validate(manifest["corpus"])
    corpus, _ = open_corpus(RunConfig(corpus=config, store=store))
    made = tokenize(config, corpus, TokenizerInfo.open(store / "tokenizers" / manifest["tokenizer_id"]), store)
    if made.id != manifest["id"]:
        raise CorpusError(
            f"the corpus changed since {manifest['id']} was made and now gives dataset {made.id}: "
            "what is damaged in the old one can no longer be made"
        )
    return [key for key, _ in found], made


def skipped_pieces(dataset: Path) -> Iterator[tuple[str, int, int, str, bytes]]:
    """(path, offset, bytes, reason, the piece itself) of everything that became no document.

    The piece is empty where it was too long to be kept or could not be read.
    """
    manifest = read_manifest(dataset)
    kept: dict[tuple[str, int, str], bytes] = {}  # by path, offset and reason
    for entry in manifest["chunks"]:
        folder = dataset.parent.parent / "shards" / entry["key"]
        starts = [account["start"] for account in read_manifest(folder)["ledger"]]
        for row in pa.ipc.open_file(pa.memory_map(str(folder / QUARANTINE))).read_all().to_pylist():
            span = entry["spans"][row["span"]]
            place = row["offset"] + span["start"] - starts[row["span"]]
            kept[span["path"], place, row["reason"]] = row["content"]
    for skip in manifest["ledger"]["skips"]:
        piece = kept.get((skip["path"], skip["offset"], skip["reason"]), b"")
        yield skip["path"], skip["offset"], skip["length"], skip["reason"], piece


def ledger_by_file(dataset: Path) -> list[dict[str, Any]]:
    """A row a file: documents, bytes in them, bytes between them, skipped pieces and bytes."""
    manifest = read_manifest(dataset)
    files: dict[str, Counter[str]] = {}
    for entry in manifest["chunks"]:
        for span in entry["spans"]:
            account = files.setdefault(span["path"], Counter())
            account.update({name: span[name] for name in _ACCOUNT[:3]})
    for skip in manifest["ledger"]["skips"]:
        files.setdefault(skip["path"], Counter()).update(skipped_pieces=1, skipped_bytes=skip["length"])
    return [{"path": path, **{name: files[path][name] for name in _ACCOUNT}} for path in sorted(files)]


def document_hash(text_or_hash: str) -> int:
    """16 hexadecimal digits as they are, or the hash of the text in a file of that name."""
    path = Path(text_or_hash)
    if path.is_file():
        return hash_text(path.read_bytes())
    try:
        return int(text_or_hash, 16)
    except ValueError:
        raise CorpusError(f"{text_or_hash} is neither a document hash (16 hexadecimal digits) nor a file") from None


def seen_by(store: Path, document: int) -> Iterator[tuple[str, str, str]]:
    """("dataset", id, split) and ("run", name, split) of everything in the store that holds a document."""
    holders: dict[str, str] = {}
    # A folder without a manifest is what a killed run left.
    for folder in sorted(path.parent for path in (store / "datasets").glob("*/manifest.json")):
        for entry in read_manifest(folder)["chunks"]:
            for split in SPLITS:
                hashes = Shard(shard_path(store / "shards" / entry["key"], split)).hashes
                if np.uint64(document) in np.delete(hashes, entry[split]["dropped"]):
                    holders[folder.name] = split
    yield from (("dataset", name, split) for name, split in holders.items())
    for config in sorted((store / "runs").glob("*/config.json")):
        with suppress(ValueError, LookupError):
            name = json.loads(config.read_bytes())["identity"]["dataset_id"]
            if name in holders:
                yield "run", config.parent.name, holders[name]
