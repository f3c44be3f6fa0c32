"""Documents x tokenizer -> a dataset: chunks of documents become shards, the manifest comes last.

A chunk is cut where the documents themselves say so (a document's hash, weighed by its length),
so an insertion or deletion changes the chunks it touches and no others. Its key names its documents, the
tokenizer and the split; nothing else, so a chunk that is in the store is never encoded again.
Small files share chunks, in the order of their content; large files have chunks of their own.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import CorpusConfig, fingerprint
from lmcore.corpus import Corpus, Scan, SourceFile, scan_again
from lmcore.documents import Document, Ledger, read_documents
from lmcore.errors import CorpusError, StoreError
from lmcore.shards import SPLITS, Shard, shard_path, write_shard
from lmcore.store import (
    FORMAT_VERSION,
    MANIFEST,
    Output,
    hash_file,
    is_whole,
    manifest_bytes,
    open_sealed,
    read_manifest,
    sealed_folder,
    write_file,
)
from lmcore.tokenizer import Tokenizer, TokenizerInfo

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); bytes of the files as they are stored."""

_ENCODERS = 2
"""Chunks encoded at once. SentencePiece and tokenizers use every core for one chunk already; the second
one fills the gaps that hashing and writing leave."""


class Dataset(Output):
    """A tokenized corpus in the store, in figures."""

    id: str
    folder: Path
    tokenizer_id: str
    documents: int
    tokens: int
    text_bytes: int
    validation_documents: int
    validation_tokens: int
    validation_text_bytes: int
    dropped_documents: int
    """Training documents left out because they stand in corpus.validation_paths."""
    duplicate_documents: int
    longest_document_bytes: int
    chunks: int
    chunks_made: int
    """Chunks that were not in the store before."""
    source_bytes: int
    skipped_bytes: int
    skipped_pieces: int
    unaccounted_bytes: int

    skipped: dict[str, int]
    """Pieces by reason."""
    manifest_hash: str
    """Of manifest.json: another corpus may have the same chunks and another ledger."""

    def account(self) -> str:
        """What became of the bytes, in a line."""
        reasons = ", ".join(f"{pieces:,} {reason}" for reason, pieces in self.skipped.items())
        skipped = f", {self.skipped_bytes:,} skipped ({reasons})" if self.skipped else ""
        return f"{self.source_bytes:,} bytes read{skipped}, {self.unaccounted_bytes} unaccounted"

    def verify(self) -> None:
        manifest = read_manifest(self.folder)
        if hash_file(self.folder / MANIFEST) != self.manifest_hash:
            raise StoreError(f"{self.folder / MANIFEST} now tells of another reading of the corpus")
        store = self.folder.parent.parent
        for key in {chunk["key"] for chunk in manifest["chunks"]}:
            open_sealed(store / "shards" / key)


@dataclass
class Chunk:
    """Documents that are encoded together, and where they came from."""

    split: str
    """"train" or "validation" for all of it, or "hash:FRACTION" for each document by its hash."""
    documents: list[Document] = field(default_factory=list)
    text_bytes: int = 0
    stored_bytes: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)

    def add(self, document: Document, path: str) -> None:
        self.documents.append(document)
        self.text_bytes += len(document.utf8)
        if not self.sources or self.sources[-1]["path"] != path:
            self.sources.append({"path": path, "start": document.offset, "documents": 0})
        self.sources[-1]["stop"] = document.offset + document.length
        self.sources[-1]["documents"] += 1

    def key(self, tokenizer_id: str) -> str:
        """Names the texts in their order, the tokenizer and the split."""
        digest = hashlib.blake2b(digest_size=16)
        for document in self.documents:
            digest.update(document.digest)
        return fingerprint(FORMAT_VERSION, tokenizer_id, self.split, digest.hexdigest())

    def splits(self) -> list[str]:
        """The split of every document."""
        if self.split in SPLITS:
            return [self.split] * len(self.documents)
        fraction = float(self.split.removeprefix("hash:"))
        return [SPLITS[document.is_validation(fraction)] for document in self.documents]


def dataset_key(config: CorpusConfig, corpus: Corpus, tokenizer: TokenizerInfo) -> str:
    """Names everything that ``tokenize`` depends on, paths included (they stand in the manifest)."""
    return fingerprint(FORMAT_VERSION, corpus.listing, tokenizer.id, config.chunk_bytes)


def tokenize(
    config: CorpusConfig,
    corpus: Corpus,
    tokenizer: TokenizerInfo,
    store: Path,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """Encode what is not in the store yet, and write the dataset's manifest.

    Memory: about ``_ENCODERS`` + 2 chunks. Raises CorpusError when no text, or no validation text, is found.
    """
    found = scan_again(config, corpus)
    ledger = Ledger()
    encoder = _Encoder(Tokenizer(tokenizer.folder), store, config.workers or -1)
    entries = []
    done = 0
    for entry, stored_bytes in _encode_all(_chunks(found, config, ledger), encoder):
        entries.append(entry)
        done += stored_bytes
        progress(done, corpus.stored_bytes)
    progress(corpus.stored_bytes, corpus.stored_bytes)
    if config.validation_paths:
        _drop_validation_texts(entries, store)
    entries.sort(key=lambda entry: (entry["key"], entry["sources"][0]["path"]))
    _check_not_empty(entries, ledger, config)
    return _write_manifest(entries, ledger, tokenizer, store, len(encoder.made))


# --- chunks ---


def _chunks(found: Scan, config: CorpusConfig, ledger: Ledger) -> Iterator[Chunk]:
    if found.validation_files:
        yield from _cut(found.validation_files, "validation", config, ledger)
        yield from _cut(found.files, "train", config, ledger)
    else:
        yield from _cut(found.files, f"hash:{config.validation_fraction}", config, ledger)


def _cut(files: list[SourceFile], split: str, config: CorpusConfig, ledger: Ledger) -> Iterator[Chunk]:
    shortest, longest = config.chunk_bytes // 4, config.chunk_bytes * 4
    small = [file for file in files if file.stored_bytes < shortest]
    groups = [sorted(small, key=lambda file: (file.blake2b, file.path))]
    groups += [[file] for file in files if file.stored_bytes >= shortest]
    for group in groups:
        chunk = Chunk(split)
        for file, document, stored_bytes in _read(group, config, ledger):
            chunk.stored_bytes += stored_bytes
            if document is None:
                continue
            chunk.add(document, file.path)
            if chunk.text_bytes >= longest or (
                chunk.text_bytes >= shortest and _ends_chunk(document, config.chunk_bytes)
            ):
                yield chunk
                chunk = Chunk(split)
        if chunk.documents:
            yield chunk


def _ends_chunk(document: Document, chunk_bytes: int) -> bool:
    """True with probability length / chunk_bytes: the same for the same text, wherever it stands.

    The upper half of the digest, so that boundaries and the validation split are independent.
    """
    return int.from_bytes(document.digest[8:]) < len(document.utf8) / chunk_bytes * 2**64


def _read(
    files: list[SourceFile], config: CorpusConfig, ledger: Ledger
) -> Iterator[tuple[SourceFile, Document | None, int]]:
    """Documents with the stored bytes read for each; None with those read after a file's last one."""
    for file in files:
        account = Ledger()
        counted = 0
        for document in read_documents(file, config, account):
            yield file, document, account.stored_bytes - counted
            counted = account.stored_bytes
        yield file, None, account.stored_bytes - counted
        if account.unaccounted_bytes:
            raise CorpusError(
                f"the ledger of {file.path} does not add up: {account.unaccounted_bytes} bytes "
                "unaccounted. This is a bug: please report the file"
            )
        ledger.add(account)


# --- encoding ---


class _Encoder:
    """Turns chunks into sealed folders shards/<key>/; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, store: Path, threads: int) -> None:
        self.tokenizer = tokenizer
        self.store = store
        self.threads = threads
        self.made: set[str] = set()

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """The manifest entry of a chunk whose shards are in the store."""
        key = chunk.key(self.tokenizer.id)
        folder = self.store / "shards" / key
        if not is_whole(folder):
            self._encode(chunk, folder)
            self.made.add(key)
        return {
            "key": key,
            "source": "corpus",
            "sources": chunk.sources,
            "dropped": [],
            **read_manifest(folder)["splits"],
        }

    def _encode(self, chunk: Chunk, folder: Path) -> None:
        ids = self.tokenizer.encode_batch([d.text for d in chunk.documents], self.threads)
        of_document = chunk.splits()
        counts: dict[str, Any] = {}
        with sealed_folder(folder, lambda: {"kind": "chunk", "splits": counts}) as temporary:
            for split in SPLITS:
                rows = [row for row, name in enumerate(of_document) if name == split]
                documents = [chunk.documents[row] for row in rows]
                text_bytes = [len(document.utf8) for document in documents]
                write_shard(
                    shard_path(temporary, split),
                    [ids[row] for row in rows],
                    text_bytes,
                    rows,
                    [document.hash for document in documents],
                    tokenizer_id=self.tokenizer.id,
                    eos_id=self.tokenizer.eos_id,
                    dtype=self.tokenizer.dtype,
                )
                counts[split] = {
                    "documents": len(rows),
                    "tokens": sum(len(ids[row]) + 1 for row in rows),
                    "text_bytes": sum(text_bytes),
                    "longest_bytes": max(text_bytes, default=0),
                }


def _encode_all(chunks: Iterator[Chunk], encoder: _Encoder) -> Iterator[tuple[dict[str, Any], int]]:
    """Manifest entries in the order of the chunks; at most ``_ENCODERS`` + 1 chunks wait or run."""
    pending: deque[tuple[Future[dict[str, Any]], int]] = deque()
    pool = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode")
    try:
        for chunk in chunks:
            pending.append((pool.submit(encoder, chunk), chunk.stored_bytes))
            if len(pending) > _ENCODERS:
                future, stored_bytes = pending.popleft()
                yield future.result(), stored_bytes
        while pending:
            future, stored_bytes = pending.popleft()
            yield future.result(), stored_bytes
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --- the manifest ---


def _drop_validation_texts(entries: list[dict[str, Any]], store: Path) -> None:
    """List, for every chunk, the training rows whose text also stands in the validation files."""
    held_out = _hashes(entries, store, "validation")
    for entry in entries:
        shard = Shard(shard_path(store / "shards" / entry["key"], "train"))
        rows = np.flatnonzero(np.isin(shard.hashes, held_out))
        entry["dropped"] = rows.tolist()
        entry["train"] = {
            **entry["train"],
            "documents": len(shard) - len(rows),
            "tokens": len(shard.tokens) - int(np.diff(shard.offsets)[rows].sum()),
            "text_bytes": int(shard.text_bytes.sum() - shard.text_bytes[rows].sum()),
        }


def _hashes(entries: list[dict[str, Any]], store: Path, *splits: str) -> Any:
    shards = [Shard(shard_path(store / "shards" / entry["key"], split)) for entry in entries for split in splits]
    return np.concatenate([np.empty(0, np.uint64), *(shard.hashes for shard in shards)])


def _check_not_empty(entries: list[dict[str, Any]], ledger: Ledger, config: CorpusConfig) -> None:
    skipped = ", ".join(f"{row['pieces']} {why}" for why, row in ledger.by_reason().items())
    if not sum(entry["train"]["documents"] for entry in entries):
        raise CorpusError(
            f"no training document in {', '.join(config.paths)}: {ledger.source_bytes:,} bytes read, "
            f"skipped: {skipped or 'nothing'}"
        )
    if not sum(entry["validation"]["documents"] for entry in entries):
        raise CorpusError(
            f"the validation split is empty: none of {ledger.documents} documents fell into it. "
            f"Raise corpus.validation_fraction (now {config.validation_fraction}), cut the text into smaller "
            "documents (corpus.document), or give corpus.validation_paths"
        )


def _write_manifest(
    entries: list[dict[str, Any]], ledger: Ledger, tokenizer: TokenizerInfo, store: Path, made: int
) -> Dataset:
    content = [[entry["key"], entry["dropped"]] for entry in entries]
    dataset_id = fingerprint(FORMAT_VERSION, tokenizer.id, content)
    folder = store / "datasets" / dataset_id
    totals = {
        split: {name: sum(entry[split][name] for entry in entries) for name in ("documents", "tokens", "text_bytes")}
        for split in SPLITS
    }
    manifest = {
        "kind": "dataset",
        "id": dataset_id,
        "tokenizer_id": tokenizer.id,
        "splits": totals,
        "chunks": entries,
        "ledger": ledger.to_json(),
        "files": {},
    }
    encoded = manifest_bytes(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    # The id names chunks and drops. Where they came from may change (a rename): then the same
    # dataset gets a manifest with the new paths, and its readers see the old one or the new.
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != encoded:
        write_file(folder / MANIFEST, encoded)
    hashes = _hashes(entries, store, *SPLITS)
    return Dataset(
        id=dataset_id,
        folder=folder,
        tokenizer_id=tokenizer.id,
        **totals["train"],
        **{f"validation_{name}": value for name, value in totals["validation"].items()},
        dropped_documents=sum(len(entry["dropped"]) for entry in entries),
        duplicate_documents=len(hashes) - len(np.unique(hashes)),
        longest_document_bytes=max(e[split]["longest_bytes"] for e in entries for split in SPLITS),
        chunks=len(entries),
        chunks_made=made,
        source_bytes=ledger.source_bytes,
        skipped_bytes=ledger.skipped_bytes,
        skipped_pieces=len(ledger.skipped),
        unaccounted_bytes=ledger.unaccounted_bytes,
        skipped={reason: row["pieces"] for reason, row in ledger.by_reason().items()},
        manifest_hash=hash_file(folder / MANIFEST),
    )
