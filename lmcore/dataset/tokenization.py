"""Text to a dataset: what is not in the store yet is encoded, and the manifest comes last.

A corpus is read in groups of files (chunks.py), a group in chunks; a chunk that is in the store is not encoded
again, and a group whose outline is known and whose chunks are all there is not even read.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lmcore.corpus.chunks import ChunkIndex, ChunkRef, Group, chunk_key, groups, read_chunks
from lmcore.corpus.corpus_warnings import causes, short_lines, warnings
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.scan import Corpus, Scan, SourceFile, anchored, describe, scan
from lmcore.corpus.spans import unit_of
from lmcore.dataset.encoding import Encoders, Job
from lmcore.dataset.filters import apply_filters, hashes
from lmcore.dataset.shards import SPLITS
from lmcore.errors import CorpusError, FileChangedError, StoreError
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import fingerprint, result_fields
from lmcore.store.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    find_artifact,
    manifest_bytes,
    read_manifest,
    verify_artifact,
)
from lmcore.store.files import hash_file, write_file
from lmcore.store.locks import store_locked
from lmcore.store.outputs import Output
from lmcore.store.temporary import remove, remove_stale_temp
from lmcore.tokenizer.tokenizer import TokenizerInfo

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); bytes of the files as they are stored."""


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
    """Documents left out by corpus.filter, by length, as duplicates, or because they stand in validation_paths."""
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
    dropped: dict[str, int]
    """Documents by reason."""
    manifest_hash: str
    """Of manifest.json: another corpus may have the same chunks and another ledger."""
    warnings: list[str] = Field(default_factory=list)
    """What was lost or lies unread, in sentences."""
    corpus_changed: bool
    """The corpus was changed after it was looked at. The manifest says what was read; another start reads the rest."""

    @property
    def store(self) -> Path:
        return self.folder.parent.parent

    def ledger_summary(self) -> str:
        """What became of the bytes, in a line."""
        reasons = ", ".join(f"{pieces:,} {reason}" for reason, pieces in self.skipped.items())
        skipped = (
            f", {self.skipped_bytes:,} of them skipped (pieces and whole files: {reasons})" if self.skipped else ""
        )
        dropped = "".join(f", {count:,} documents left out as {reason}" for reason, count in self.dropped.items())
        changed = ", the corpus was changed meanwhile" if self.corpus_changed else ""
        return (
            f"{self.source_bytes:,} bytes of text read{skipped}{dropped}, {self.unaccounted_bytes} unaccounted{changed}"
        )

    def verify(self) -> None:
        """As ``Output.verify``; a file of which size, time and inode are unchanged is not read again.

        A dataset of a corpus that was changed meanwhile is whole, but not what somebody else would make of that corpus.
        """
        if self.corpus_changed:
            raise StoreError("the corpus was changed while it was made")
        if hash_file(self.folder / MANIFEST) != self.manifest_hash:
            raise StoreError(f"{self.folder / MANIFEST} now tells of another reading of the corpus")
        verify_chunks(self.folder)


def verify_chunks(dataset: Path) -> None:
    """Check the sizes of a dataset's shards, and the bytes of those that changed since they were checked last.

    Raises StoreError that names the first file that is missing, truncated or changed.
    """
    store = dataset.parent.parent
    try:
        with HashIndex(store) as index:
            for key in {chunk["key"] for chunk in read_manifest(dataset)["chunks"]}:
                verify_artifact(store / "shards" / key, index.hash_of)
    except StoreError as error:
        raise StoreError(f"{error} (python -m lmcore repair {dataset.name} --store {store} makes it again)") from None


@dataclass(frozen=True)
class _Plan:
    """A chunk that is in the store or will be when the encoders are done."""

    key: str
    group: Group
    places: ChunkRef


def dataset_inputs(config: CorpusConfig, corpus: Corpus, tokenizer: TokenizerInfo) -> dict[str, Any]:
    """Everything that ``tokenize`` depends on, paths included (they stand in the manifest)."""
    names = {"chunk_bytes", "min_bytes", "max_bytes", "deduplicate", "on_bad_input"}
    settings = {f"corpus.{name}": value for name, value in config.model_dump(include=names).items()}
    return {"corpus": corpus.id, "corpus.listing": corpus.listing, "tokenizer": tokenizer.id, **settings}


def tokenize(
    config: CorpusConfig,
    corpus: Corpus,
    tokenizer: TokenizerInfo,
    store: Path,
    progress: Progress = lambda done, total: None,
    executor: Executor | None = None,
) -> Dataset:
    """Encode what is not in the store yet, and write the dataset's manifest.

    ``executor`` is anything with the interface of ``concurrent.futures`` whose workers see the store at the same
    path (processes, dask's ``client.get_executor()``); without one, config.workers threads encode. With one,
    twice config.workers chunks are on their way at a time: set it to the number of its workers.
    Memory: about three chunks a worker. A corpus that was changed since the look at it is read as it is now, but for
    files that are not settled or change once more: each of these costs itself. Raises CorpusError when no text, or no
    validation text, is found.
    """
    with store_locked(store, shared=True):
        dataset = _tokenize(config, corpus, tokenizer, store, progress, executor)
        os.utime(tokenizer.folder / MANIFEST)  # as write_dataset_manifest does
    return dataset


def _tokenize(
    config: CorpusConfig,
    corpus: Corpus,
    tokenizer: TokenizerInfo,
    store: Path,
    progress: Progress,
    executor: Executor | None,
) -> Dataset:
    done = 0

    def advance(stored_bytes: int) -> None:
        nonlocal done
        done += stored_bytes
        progress(min(done, corpus.stored_bytes), corpus.stored_bytes)

    ledger = Ledger()
    inputs: list[dict[str, Any]] = []
    with HashIndex(store) as index:
        found = scan(config, index.hash_of, corpus.as_of, index.known)
        ledger.leave_out(found.skipped)
        with Encoders(config.workers, executor, advance) as encoders:
            work = _Work(config, tokenizer, store, index, encoders, ledger, inputs)
            plans = [plan for group in groups(found, config) for plan in work.plan(group)]
        entries = [_entry(plan, store, config, ledger) for plan in plans]
    if executor is not None:
        remove_stale_temp(store / "shards")  # of a worker that died amid a chunk, which another worker then made
    progress(corpus.stored_bytes, corpus.stored_bytes)
    if config.on_bad_input == "fail":
        ledger.require_no_skips()  # in chunks that were there already
    _check_account(ledger.unaccounted_bytes, "the corpus")
    entries.sort(key=lambda entry: (entry["key"], entry["source"], entry["spans"][0]["path"]))
    left_out = apply_filters(entries, config, store)
    if ledger.filtered_documents:
        left_out["filter"] = {"documents": ledger.filtered_documents, "bytes": ledger.filtered_bytes}
    _check_not_empty(entries, ledger, left_out, config)
    changed = describe(found, config).listing != corpus.listing or _left_behind(found, inputs)
    return _write_manifest(entries, ledger, left_out, inputs, config, tokenizer, store, encoders.jobs, changed, found)


def _left_behind(found: Scan, inputs: list[dict[str, Any]]) -> bool:
    """Whether a file was read with other bytes than those that were scanned, or not at all."""
    scanned = {file.path: file.digest for file in found.files + found.validation_files}
    return scanned != {row["path"]: row["blake3"] for row in inputs}


@dataclass(frozen=True)
class _Work:
    """Reads groups and starts the jobs that are needed."""

    config: CorpusConfig
    tokenizer: TokenizerInfo
    store: Path
    index: HashIndex
    encoders: Encoders
    ledger: Ledger
    inputs: list[dict[str, Any]]
    """Gets a row a file."""
    redo: set[str] = field(default_factory=set)
    """Keys of chunks to encode although they are there, until that is done."""

    def plan(self, group: Group) -> list[_Plan]:
        """The group's chunks, encoded or about to be."""
        key = group.key(self.config)
        known = self.index.outline(key)
        outline = ChunkIndex.from_json(known) if known else None
        if outline is not None and all(self._is_there(places, group) for places in outline.chunks):
            self.encoders.pass_over(group.stored_bytes)
        else:
            group, outline = self._read(group)
            _check_account(outline.unaccounted_bytes(), " and ".join(file.path for file in group.files[:2]))
            self.index.remember(group.key(self.config), outline.to_json())
        for file, account in zip(group.files, outline.files, strict=True):
            account.skipped = [replace(skip, path=file.path) for skip in account.skipped]
            if self.config.on_bad_input == "fail":
                account.require_no_skips()
            self.ledger.add(account)
            undecodable = account.undecodable_stored_bytes
            row = {"path": file.path, "stored_bytes": account.stored_bytes, "undecodable_stored_bytes": undecodable}
            self.inputs.append({**row, "blake3": file.digest})
        return [_Plan(self._key(places.digest, group), group, places) for places in outline.chunks]

    def _read(self, group: Group) -> tuple[Group, ChunkIndex]:
        """Read and encode a group; a file that cannot be read, or changes meanwhile, costs only itself."""
        while group.files:
            outline, counted = ChunkIndex(), 0
            try:
                for chunk in read_chunks(group, self.config, outline):
                    if self.config.on_bad_input == "fail":
                        outline.files[-1].require_no_skips()
                    stored = sum(file.stored_bytes for file in outline.files) - counted
                    counted += stored
                    if self._is_there(outline.chunks[-1], group):
                        self.encoders.pass_over(stored)
                        continue
                    key = self._key(outline.chunks[-1].digest, group)
                    if key in self.redo:
                        remove(self.store / "shards" / key)
                        self.redo.discard(key)
                    job = Job(key, chunk.spans, group.split, self.config, self.tokenizer.folder, self.store)
                    self.encoders.submit(job, stored)
            except FileChangedError as error:
                [scanned] = (file for file in group.files if file.path == error.path)
                if digest := self.index.corrected(scanned.path, scanned.digest):
                    files = [replace(file, digest=digest) if file is scanned else file for file in group.files]
                    group = replace(group, files=files)
                    continue
                if self.config.on_bad_input == "fail":
                    raise
                self.ledger.skipped.append(Skip(error.path, 0, 0, error.reason, stored=scanned.stored_bytes))
                group = group.without(error.path)
            else:
                return group, outline
        return group, ChunkIndex()

    def _key(self, digest: str, group: Group) -> str:
        return chunk_key(digest, group.split, self.tokenizer.id, self.config)

    def _is_there(self, places: ChunkRef, group: Group) -> bool:
        key = self._key(places.digest, group)
        return key not in self.redo and find_artifact(self.store / "shards" / key, self.index.hash_of) is not None


def remake(dataset: Path, keys: set[str]) -> None:
    """Encode chunks of a dataset again, from the files they came from; an old one goes when its text is at hand.

    Raises CorpusError that names the chunks whose text is not there any more.
    """
    store, manifest = dataset.parent.parent, read_manifest(dataset)
    config = CorpusConfig.model_validate(manifest["corpus"])
    tokenizer = TokenizerInfo.open(store / "tokenizers" / manifest["tokenizer_id"])
    paths: dict[str, set[str]] = {}
    for entry in manifest["chunks"]:
        paths.setdefault(entry["key"], set()).update(span["path"] for span in entry["spans"])
    known, wanted = set().union(*paths.values()), set().union(*(paths[key] for key in keys))
    left = set(keys)
    with store_locked(store, shared=True), HashIndex(store) as index:
        found = scan(config, index.hash_of, known=index.known)
        # Others beside them, that came later, would be packed with them.
        files, validation_files = (
            [file for file in group if file.path in known] for group in (found.files, found.validation_files)
        )
        with Encoders(0, None, lambda stored_bytes: None) as encoders:
            work = _Work(config, tokenizer, store, index, encoders, Ledger(), [], left)
            for group in groups(replace(found, files=files, validation_files=validation_files), config):
                if any(file.path in wanted for file in group.files):
                    work.plan(group)
    if left:
        raise CorpusError(
            f"the files of the corpus no longer hold the text of {', '.join(sorted(left))}: the corpus changed since "
            f"dataset {manifest['id']} was made. Run the pipeline again to make a dataset of what is there now"
        )


# --- the manifest ---


def _unit(file: SourceFile, config: CorpusConfig) -> str:
    return "JSON line" if file.kind == "jsonl" else unit_of(file.kind, config)


def _short_lines(entries: list[dict[str, Any]], found: Scan, config: CorpusConfig) -> list[str]:
    """A warning of short lines where the settings ask for lines; where the files look like lines, it is only logged."""
    spans = [span for entry in entries for span in entry["spans"]]
    paths = {file.path for file in found.files if _unit(file, config) == "line"}
    tokens, text_bytes = (sum(row[name] for row in totals(entries).values()) for name in ("tokens", "text_bytes"))
    words = short_lines(spans, paths, tokens / max(1, text_bytes))
    if words and config.document == "auto":
        _log.info("%s", words)
    return [words] if words and config.document != "auto" else []


def _entry(plan: _Plan, store: Path, config: CorpusConfig, ledger: Ledger) -> dict[str, Any]:
    """The manifest's entry of a chunk in the store; its account is added to the corpus's ledger."""
    manifest = read_manifest(store / "shards" / plan.key)
    spans = []
    for (number, start, stop, _), account in zip(plan.places.spans, manifest["ledger"], strict=True):
        path = plan.group.files[number].path
        skips = account.pop("skips")
        # The job counted offsets from where the span stood when it was encoded; rows and bytes alike.
        moved = start - account.pop("start")
        skipped = [
            Skip(path, offset + moved, length, reason, detail="".join(detail))
            for offset, length, reason, *detail in skips
        ]
        unit = _unit(plan.group.files[number], config)
        ledger.units[unit] = ledger.units.get(unit, 0) + account["documents"]
        spans.append({"path": path, "start": start, "stop": stop, **account, "skipped_pieces": len(skips)})
        ledger.add(Ledger(**{**account, "source_bytes": 0}, skipped=skipped))
    return {"key": plan.key, "source": plan.group.source, "spans": spans, **manifest["splits"]}


def _check_account(unaccounted_bytes: int, what: str) -> None:
    if unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {what} does not add up: {unaccounted_bytes} bytes unaccounted. This is a bug: report it"
        )


def _check_not_empty(
    entries: list[dict[str, Any]], ledger: Ledger, left_out: dict[str, dict[str, int]], config: CorpusConfig
) -> None:
    reasons = [f"{row['pieces']} {why}" for why, row in ledger.by_reason().items()]
    reasons += [f"{row['documents']} {why}" for why, row in left_out.items()]
    read = f"{ledger.source_bytes:,} bytes of text read, left out: {', '.join(reasons) or 'nothing'}"
    if not sum(entry["train"]["documents"] for entry in entries):
        paths = [path for some in (config.paths, *config.sources.values()) for path in some]
        raise CorpusError(f"no training document in {', '.join(paths)}: {read} ({'; '.join(causes(ledger, config))})")
    if not sum(entry["validation"]["documents"] for entry in entries):
        if config.validation_paths:
            raise CorpusError(f"no document to validate on in {', '.join(config.validation_paths)}: {read}")
        raise CorpusError(
            f"the validation split is empty: none of {ledger.documents} documents fell into it, or stayed ({read}). "
            f"Raise corpus.validation_fraction (now {config.validation_fraction}), cut the text into smaller "
            "documents (corpus.document), or give corpus.validation_paths"
        )


def dataset_id(entries: list[dict[str, Any]], tokenizer_id: str) -> str:
    """Names the documents, not where they came from."""
    content = [[entry["key"], entry["source"], *(entry[split]["dropped"] for split in SPLITS)] for entry in entries]
    return fingerprint(FORMAT_VERSION, tokenizer_id, content)


def totals(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Documents, tokens and text bytes of each split of some entries, without what they leave out."""
    names = ("documents", "tokens", "text_bytes")
    return {split: {name: sum(entry[split][name] for entry in entries) for name in names} for split in SPLITS}


def write_dataset_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a dataset's manifest; where this very one is there, only its time is set: gc spares what was wanted lately.

    The id names chunks and drops. Where they came from may change (a rename): then the same dataset gets a manifest
    with the new paths, and its readers see the old one or the new.
    """
    content = manifest_bytes(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() == content:
        os.utime(folder / MANIFEST)
    else:
        write_file(folder / MANIFEST, content)


def _write_manifest(
    entries: list[dict[str, Any]],
    ledger: Ledger,
    left_out: dict[str, dict[str, int]],
    inputs: list[dict[str, Any]],
    config: CorpusConfig,
    tokenizer: TokenizerInfo,
    store: Path,
    made: int,
    changed: bool,
    found: Scan,
) -> Dataset:
    name = dataset_id(entries, tokenizer.id)
    folder = store / "datasets" / name
    splits = totals(entries)
    manifest = {
        "kind": "dataset",
        "id": name,
        "tokenizer_id": tokenizer.id,
        "splits": splits,
        "chunks": entries,
        "ledger": ledger.to_json() | {"dropped": left_out, "beside": found.beside.by_suffix},
        "inputs": sorted(inputs, key=lambda row: str(row["path"])),
        "corpus": result_fields(anchored(config)),
        "files": {},
    }
    write_dataset_manifest(folder, manifest)
    texts = hashes(entries, store, *SPLITS)
    return Dataset(
        id=name,
        folder=folder,
        tokenizer_id=tokenizer.id,
        **splits["train"],
        **{f"validation_{name}": value for name, value in splits["validation"].items()},
        dropped_documents=sum(row["documents"] for row in left_out.values()),
        duplicate_documents=len(texts) - len(np.unique(texts)),
        longest_document_bytes=max(e[split]["longest_bytes"] for e in entries for split in SPLITS),
        chunks=len(entries),
        chunks_made=made,
        source_bytes=ledger.source_bytes,
        skipped_bytes=ledger.skipped_bytes,
        skipped_pieces=len(ledger.skipped),
        unaccounted_bytes=ledger.unaccounted_bytes,
        skipped={reason: row["pieces"] for reason, row in ledger.by_reason().items()},
        dropped={reason: row["documents"] for reason, row in left_out.items()},
        manifest_hash=hash_file(folder / MANIFEST),
        warnings=warnings(ledger, found.beside, config, name) + _short_lines(entries, found, config),
        corpus_changed=changed,
    )
