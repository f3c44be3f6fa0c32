"""Tokenize a corpus into a dataset: encode the chunks that the store lacks, then write the manifest.

A corpus is read in groups of files (chunks.py), a group in chunks. A chunk that is in the store is not encoded again. A
group with a known index whose chunks are all in the store is not read.
"""

import logging
import os
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.corpus.chunks import ChunkIndex, ChunkRef, Group, chunk_key, group_files, read_chunks
from lmcore.corpus.corpus_warnings import corpus_warnings, short_line_warning, skip_causes
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.listing import Corpus, corpus_files, with_absolute_paths
from lmcore.corpus.scan import Scan, examine, scan
from lmcore.corpus.text_range import unit_of
from lmcore.dataset.encoding import EncodingPool, Job
from lmcore.dataset.filters import apply_filters, hashes
from lmcore.dataset.manifest import Dataset, dataset_id, totals, write_dataset_manifest
from lmcore.dataset.shards import SPLITS
from lmcore.errors import CorpusError, FileChangedError
from lmcore.progress import Update, unwatched
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import result_fields
from lmcore.settings.urls import is_url
from lmcore.store.artifacts import MANIFEST, find_artifact, read_manifest
from lmcore.store.files import hash_file, remove, remove_stale_temp
from lmcore.store.locks import store_locked
from lmcore.tokenizer.tokenizer import TokenizerInfo

_log = logging.getLogger(__name__)


def dataset_inputs(config: CorpusConfig, corpus: Corpus, tokenizer: TokenizerInfo) -> dict[str, Any]:
    """Everything that ``tokenize`` depends on, including paths, which are in the manifest."""
    names = {"chunk_bytes", "min_bytes", "max_bytes", "deduplicate", "on_bad_input"}
    settings = {f"corpus.{name}": value for name, value in config.model_dump(include=names).items()}
    return {"corpus": corpus.id, "corpus.listing": corpus.listing, "tokenizer": tokenizer.id, **settings}


def tokenize(
    config: CorpusConfig,
    corpus: Corpus,
    tokenizer: TokenizerInfo,
    store: Path,
    progress: Update = unwatched,
    executor: Executor | None = None,
) -> Dataset:
    """Encode the chunks that the store lacks, and write the dataset's manifest.

    ``executor`` has the interface of ``concurrent.futures``; its workers see the store at the same path (processes,
    dask's ``client.get_executor()``). Twice config.workers chunks are submitted at a time, so set that to the number of
    its workers. Without an executor config.workers threads encode. Memory: about three chunks a worker. ``progress``
    counts stored bytes.

    A file that changed since the scan is read as it is now. If it changes again, or is not settled, it is skipped.
    Raises CorpusError if there is no text or no validation text.
    """
    done = 0

    def advance(stored_bytes: int) -> None:
        nonlocal done
        done += stored_bytes
        progress(min(done, corpus.stored_bytes), corpus.stored_bytes)

    with store_locked(store, shared=True):
        with HashIndex(store) as index:
            found = corpus_files(corpus, config, store, index)
            with EncodingPool(config.workers, executor, advance) as pool:
                encoder = _GroupEncoder(config, tokenizer, store, index, pool)
                encoder.ledger.skip_files(found.skipped)
                plans = [plan for group in group_files(found, config) for plan in encoder.plan(group)]
        if executor is not None:
            remove_stale_temp(store / "shards")  # of workers that died while they wrote a chunk
        progress(corpus.stored_bytes, corpus.stored_bytes)
        dataset = _write_dataset(plans, encoder, found)
        os.utime(tokenizer.folder / MANIFEST)  # protects it from gc, like the manifest of the dataset
    return dataset


@dataclass(frozen=True)
class _Plan:
    """A chunk that is in the store, or will be when the pool has finished."""

    key: str
    group: Group
    chunk: ChunkRef


@dataclass(frozen=True)
class _GroupEncoder:
    """Reads groups of files and starts the jobs that are needed."""

    config: CorpusConfig
    tokenizer: TokenizerInfo
    store: Path
    index: HashIndex
    pool: EncodingPool
    ledger: Ledger = field(default_factory=Ledger)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """One row for each file that was read."""
    redo: set[str] = field(default_factory=set)
    """Keys of chunks to encode even though they are in the store."""
    changed: set[str] = field(default_factory=set)
    """Paths of files that changed once since the scan."""

    def plan(self, group: Group) -> list[_Plan]:
        """The group's chunks, encoded or submitted."""
        known = self.index.get(group.index_key(self.config))
        chunk_index = ChunkIndex.from_json(known) if known else None
        if chunk_index is not None and all(self._is_in_store(chunk, group) for chunk in chunk_index.chunks):
            self.pool.skip(group.stored_bytes)
        else:
            group, chunk_index = self._read(group)
            _require_accounted(chunk_index.unaccounted_bytes(), " and ".join(file.path for file in group.files[:2]))
            self.index.put(group.index_key(self.config), chunk_index.to_json())
        for file, counts in zip(group.files, chunk_index.files, strict=True):
            counts.skipped = [replace(skip, path=file.path) for skip in counts.skipped]
            if self.config.on_bad_input == "fail":
                counts.require_no_skips()
            self.ledger.add(counts)
            undecodable = counts.undecodable_stored_bytes
            row = {"path": file.path, "stored_bytes": counts.stored_bytes, "undecodable_stored_bytes": undecodable}
            self.inputs.append({**row, "blake3": file.digest})
        return [_Plan(self._key(chunk.digest, group), group, chunk) for chunk in chunk_index.chunks]

    def _read(self, group: Group) -> tuple[Group, ChunkIndex]:
        """Read and encode a group. A file that changes or cannot be read is replaced or skipped."""
        while group.files:
            try:
                return group, self._submit(group)
            except FileChangedError as error:
                group = self._replace_changed(group, error)
        return group, ChunkIndex()

    def _submit(self, group: Group) -> ChunkIndex:
        chunk_index, counted = ChunkIndex(), 0
        for ranges in read_chunks(group, self.config, chunk_index):
            if self.config.on_bad_input == "fail":
                chunk_index.files[-1].require_no_skips()
            stored = sum(file.stored_bytes for file in chunk_index.files) - counted
            counted += stored
            if self._is_in_store(chunk_index.chunks[-1], group):
                self.pool.skip(stored)
                continue
            key = self._key(chunk_index.chunks[-1].digest, group)
            if key in self.redo:
                remove(self.store / "shards" / key)
                self.redo.discard(key)
            job = Job(key, ranges, group.split, self.config, self.tokenizer.folder, self.store)
            self.pool.submit(job, stored)
        return chunk_index

    def _replace_changed(self, group: Group, error: FileChangedError) -> Group:
        """The group with the file as it is now, or without it if it changed before, is gone, or is not settled."""
        [scanned] = (file for file in group.files if file.path == error.path)
        found: SourceFile | Skip = Skip(error.path, 0, 0, error.reason, stored=scanned.stored_bytes)
        is_file = is_url(error.path) or os.path.isfile(error.path)
        if error.reason == "changed_while_read" and is_file and error.path not in self.changed:
            self.changed.add(error.path)
            found = examine(scanned.path, scanned.source, self.config, self.index, rehash=True)
        if isinstance(found, SourceFile):
            return group.replaced(error.path, found)
        if self.config.on_bad_input == "fail":
            raise error
        self.ledger.skipped.append(found)
        return group.replaced(error.path)

    def _key(self, digest: str, group: Group) -> str:
        return chunk_key(digest, group.split, self.tokenizer.id, self.config)

    def _is_in_store(self, chunk: ChunkRef, group: Group) -> bool:
        key = self._key(chunk.digest, group)
        return key not in self.redo and find_artifact(self.store / "shards" / key, self.index.hash_of) is not None


def encode_again(dataset: Path, keys: set[str]) -> None:
    """Encode chunks of a dataset again from their files. The old chunk is removed when its text is found.

    Raises CorpusError that names the chunks whose text is gone.
    """
    store, manifest = dataset.parent.parent, read_manifest(dataset)
    config = CorpusConfig.model_validate(manifest["corpus"])
    tokenizer = TokenizerInfo.open(store / "tokenizers" / manifest["tokenizer_id"])
    paths: dict[str, set[str]] = {}
    for entry in manifest["chunks"]:
        paths.setdefault(entry["key"], set()).update(span["path"] for span in entry["spans"])
    known, wanted = set().union(*paths.values()), set().union(*(paths[key] for key in keys))
    with store_locked(store, shared=True), HashIndex(store) as index:
        found = scan(config, index)
        # Files that were added later would change the groups.
        files, validation_files = (
            [file for file in group if file.path in known] for group in (found.files, found.validation_files)
        )
        with EncodingPool(0, None, lambda stored_bytes: None) as pool:
            encoder = _GroupEncoder(config, tokenizer, store, index, pool, redo=set(keys))
            for group in group_files(replace(found, files=files, validation_files=validation_files), config):
                if any(file.path in wanted for file in group.files):
                    encoder.plan(group)
    if encoder.redo:
        raise CorpusError(
            f"the files of the corpus no longer hold the text of {', '.join(sorted(encoder.redo))}: the corpus changed "
            f"since dataset {manifest['id']} was made. Run the pipeline again to make a dataset of the present corpus"
        )


# --- the manifest ---


def _write_dataset(plans: list[_Plan], encoder: _GroupEncoder, found: Scan) -> Dataset:
    config, ledger, store = encoder.config, encoder.ledger, encoder.store
    entries = [_entry(plan, store, config, ledger) for plan in plans]
    if config.on_bad_input == "fail":
        ledger.require_no_skips()  # in chunks that were in the store before
    _require_accounted(ledger.unaccounted_bytes, "the corpus")
    entries.sort(key=lambda entry: (entry["key"], entry["source"], entry["spans"][0]["path"]))
    dropped = apply_filters(entries, config, store)
    _require_documents(entries, ledger, dropped, config)
    manifest = _manifest(entries, dropped, encoder, found)
    name, splits = manifest["id"], manifest["splits"]
    folder = store / "datasets" / name
    write_dataset_manifest(folder, manifest)
    texts = hashes(entries, store, *SPLITS)
    read = {row["path"]: row["blake3"] for row in encoder.inputs}
    return Dataset(
        id=name,
        folder=folder,
        tokenizer_id=encoder.tokenizer.id,
        **splits["train"],
        **{f"validation_{key}": value for key, value in splits["validation"].items()},
        dropped_documents=sum(row["documents"] for row in dropped.values()),
        duplicate_documents=len(texts) - len(np.unique(texts)),
        longest_document_bytes=max(entry[split]["longest_bytes"] for entry in entries for split in SPLITS),
        chunks=len(entries),
        chunks_made=encoder.pool.jobs,
        source_bytes=ledger.source_bytes,
        skipped_bytes=ledger.skipped_bytes,
        skipped_pieces=len(ledger.skipped),
        unaccounted_bytes=ledger.unaccounted_bytes,
        skipped={reason: row["pieces"] for reason, row in ledger.by_reason().items()},
        dropped={reason: row["documents"] for reason, row in dropped.items()},
        manifest_hash=hash_file(folder / MANIFEST),
        warnings=corpus_warnings(ledger, found.unread, config, name) + _short_lines(entries, found, config),
        corpus_changed=read != {file.path: file.digest for file in found.all_files},
    )


def _manifest(
    entries: list[dict[str, Any]], dropped: dict[str, dict[str, int]], encoder: _GroupEncoder, found: Scan
) -> dict[str, Any]:
    return {
        "kind": "dataset",
        "id": dataset_id(entries, encoder.tokenizer.id),
        "tokenizer_id": encoder.tokenizer.id,
        "splits": totals(entries),
        "chunks": entries,
        "ledger": encoder.ledger.to_json() | {"dropped": dropped, "beside": found.unread.by_suffix},
        "inputs": sorted(encoder.inputs, key=lambda row: str(row["path"])),
        "corpus": result_fields(with_absolute_paths(encoder.config)),
        "files": {},
    }


def _entry(plan: _Plan, store: Path, config: CorpusConfig, ledger: Ledger) -> dict[str, Any]:
    """The manifest's entry of a chunk. The counts of the chunk are added to the corpus's ledger."""
    manifest = read_manifest(store / "shards" / plan.key)
    spans = []
    for (number, start, stop, _), counts in zip(plan.chunk.spans, manifest["ledger"], strict=True):
        file, skips = plan.group.files[number], counts.pop("skips")
        for name in ("filtered_documents", "filtered_bytes"):
            counts.pop(name, 0)  # an earlier version had a filter
        # The chunk stores offsets from the place where the text was when it was encoded.
        moved = start - counts.pop("start")
        skipped = [
            Skip(file.path, offset + moved, length, reason, detail="".join(detail))
            for offset, length, reason, *detail in skips
        ]
        unit = _unit(file, config)
        ledger.units[unit] = ledger.units.get(unit, 0) + counts["documents"]
        spans.append({"path": file.path, "start": start, "stop": stop, **counts, "skipped_pieces": len(skips)})
        ledger.add(Ledger(**{**counts, "source_bytes": 0}, skipped=skipped))
    return {"key": plan.key, "source": plan.group.source, "spans": spans, **manifest["splits"]}


def _unit(file: SourceFile, config: CorpusConfig) -> str:
    return "JSON line" if file.kind == "jsonl" else unit_of(file.kind, config)


def _short_lines(entries: list[dict[str, Any]], found: Scan, config: CorpusConfig) -> list[str]:
    """A warning of short lines if the settings ask for lines. With corpus.document = auto it is only logged."""
    spans = [span for entry in entries for span in entry["spans"]]
    paths = {file.path for file in found.files if _unit(file, config) == "line"}
    tokens, text_bytes = (sum(row[name] for row in totals(entries).values()) for name in ("tokens", "text_bytes"))
    warning = short_line_warning(spans, paths, tokens / max(1, text_bytes))
    if warning and config.document == "auto":
        _log.info("%s", warning)
    return [warning] if warning and config.document != "auto" else []


def _require_accounted(unaccounted_bytes: int, what: str) -> None:
    if unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {what} does not add up: {unaccounted_bytes} bytes unaccounted. This is a bug: report it"
        )


def _require_documents(
    entries: list[dict[str, Any]], ledger: Ledger, dropped: dict[str, dict[str, int]], config: CorpusConfig
) -> None:
    reasons = [f"{row['pieces']} {why}" for why, row in ledger.by_reason().items()]
    reasons += [f"{row['documents']} {why}" for why, row in dropped.items()]
    read = f"{ledger.source_bytes:,} bytes of text read, left out: {', '.join(reasons) or 'nothing'}"
    if not sum(entry["train"]["documents"] for entry in entries):
        paths = [path for some in (config.paths, *config.sources.values()) for path in some]
        causes = "; ".join(skip_causes(ledger, config))
        raise CorpusError(f"no training document in {', '.join(paths)}: {read} ({causes})")
    if not sum(entry["validation"]["documents"] for entry in entries):
        if config.validation_paths:
            raise CorpusError(f"no document to validate on in {', '.join(config.validation_paths)}: {read}")
        raise CorpusError(
            f"the validation split is empty: none of {ledger.documents} documents fell into it, or stayed ({read}). "
            f"Raise corpus.validation_fraction (now {config.validation_fraction}), cut the text into smaller "
            "documents (corpus.document), or give corpus.validation_paths"
        )
