"""Tokenize a corpus into a dataset: encode the chunks that the store lacks, then write the manifest.

A corpus is read in groups of files (chunks.py), a group in chunks. A chunk that is in the store is not encoded again. A
group with a known index whose chunks are all in the store is not read.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmcore.corpus.chunks import ChunkIndex, ChunkRef, Group, chunk_key, group_files, read_chunks
from lmcore.corpus.corpus_warnings import corpus_warnings, short_line_warning, skip_causes
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.listing import Corpus, corpus_files, with_absolute_paths
from lmcore.corpus.scan import Scan, examine, scan
from lmcore.corpus.text_range import unit_of
from lmcore.dataset.encoding import Job, encode_all
from lmcore.dataset.filters import apply_filters, hashes
from lmcore.dataset.manifest import Dataset, Entry, Splits, dataset_id, text_ranges, totals, write_dataset_manifest
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
            reader = _Reader(config, tokenizer, store, index, advance)
            reader.ledger.skip_files(found.skipped)
            jobs = encode_all(reader.jobs(group_files(found, config)), config.workers, executor, advance)
        if executor is not None:
            remove_stale_temp(store / "shards")  # of workers that died while they wrote a chunk
        progress(corpus.stored_bytes, corpus.stored_bytes)
        dataset = _write_dataset(reader, found, jobs)
        os.utime(tokenizer.folder / MANIFEST)  # protects it from gc, like the manifest of the dataset
    return dataset


def encode_again(dataset: Path, keys: set[str]) -> None:
    """Encode chunks of a dataset again from their files. Raises CorpusError that names those whose text is gone."""
    store, manifest = dataset.parent.parent, read_manifest(dataset)
    config = CorpusConfig.model_validate(manifest["corpus"])
    tokenizer = TokenizerInfo.open(store / "tokenizers" / manifest["tokenizer_id"])
    paths: dict[str, set[str]] = {}
    for key, spans in text_ranges(manifest):
        paths.setdefault(key, set()).update(span["path"] for span in spans)
    known, wanted = set().union(*paths.values()), set().union(*(paths[key] for key in keys))
    with store_locked(store, shared=True), HashIndex(store) as index:
        found = scan(config, index)
        # Files that were added later would change the groups.
        files, validation = ([f for f in some if f.path in known] for some in (found.files, found.validation_files))
        groups = group_files(replace(found, files=files, validation_files=validation), config)
        reader = _Reader(config, tokenizer, store, index, redo=set(keys))
        encode_all(reader.jobs(g for g in groups if wanted & {f.path for f in g.files}), 0, None, lambda size: None)
    if reader.redo:
        raise CorpusError(
            f"the files of the corpus no longer hold the text of {', '.join(sorted(reader.redo))}: the corpus changed "
            f"since dataset {manifest['id']} was made. Run the pipeline again to make a dataset of the present corpus"
        )


class _Chunk(NamedTuple):
    """A chunk that is in the store, or will be when its job is done."""

    key: str
    group: Group
    spans: list[list[int]]


@dataclass(frozen=True)
class _Reader:
    """Reads groups of files, and collects what the manifest says of them."""

    config: CorpusConfig
    tokenizer: TokenizerInfo
    store: Path
    index: HashIndex
    advance: Callable[[int], None] = lambda stored_bytes: None
    """Called with the stored bytes of text that is not encoded again."""
    redo: set[str] = field(default_factory=set)
    """Keys of chunks to encode even though they are in the store."""
    chunks: list[_Chunk] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """One row for each file that was read."""
    changed: set[str] = field(default_factory=set)
    """Paths of files that changed once since the scan."""

    def jobs(self, groups: Iterable[Group]) -> Iterator[tuple[Job, int]]:
        """The chunks to encode, each with its stored bytes."""
        for group in groups:
            known = self.index.get(group.index_key(self.config))
            chunk_index = ChunkIndex.from_json(known) if known else None
            if chunk_index is not None and all(self._is_in_store(chunk, group) for chunk in chunk_index.chunks):
                self.advance(group.stored_bytes)
            else:
                group, chunk_index = yield from self._read(group)
                _require_accounted(chunk_index.unaccounted_bytes(), " and ".join(file.path for file in group.files[:2]))
                self.index.put(group.index_key(self.config), chunk_index.to_json())
            for file, counts in zip(group.files, chunk_index.files, strict=True):
                self._account(file, counts)
            self.chunks.extend(_Chunk(self._key(chunk, group), group, chunk.spans) for chunk in chunk_index.chunks)

    def _read(self, group: Group) -> Generator[tuple[Job, int], None, tuple[Group, ChunkIndex]]:
        """The jobs of a group, and what was read. A file that changes or cannot be read is replaced or skipped."""
        while group.files:
            chunk_index = ChunkIndex()
            try:
                yield from self._read_once(group, chunk_index)
                return group, chunk_index
            except FileChangedError as error:
                group = self._replace_changed(group, error)
        return group, ChunkIndex()

    def _read_once(self, group: Group, chunk_index: ChunkIndex) -> Iterator[tuple[Job, int]]:
        counted = 0
        for ranges in read_chunks(group, self.config, chunk_index):
            stored = sum(file.stored_bytes for file in chunk_index.files) - counted
            counted += stored
            if self._is_in_store(chunk_index.chunks[-1], group):
                self.advance(stored)
                continue
            key = self._key(chunk_index.chunks[-1], group)
            if key in self.redo:
                remove(self.store / "shards" / key)
                self.redo.remove(key)
            yield Job(key, ranges, group.split, self.config, self.tokenizer.folder, self.store), stored

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

    def _account(self, file: SourceFile, counts: Ledger) -> None:
        """Count what was read of a file. An index may be of an equal file with another path."""
        counts.skipped = [replace(skip, path=file.path) for skip in counts.skipped]
        if self.config.on_bad_input == "fail":
            counts.require_no_skips()
        self.ledger.add(counts)
        figures = {name: getattr(counts, name) for name in ("stored_bytes", "undecodable_stored_bytes")}
        self.inputs.append({"path": file.path, **figures, "blake3": file.digest})

    def _key(self, chunk: ChunkRef, group: Group) -> str:
        return chunk_key(chunk.digest, group.split, self.tokenizer.id, self.config)

    def _is_in_store(self, chunk: ChunkRef, group: Group) -> bool:
        key = self._key(chunk, group)
        return key not in self.redo and find_artifact(self.store / "shards" / key, self.index.hash_of) is not None


# --- the manifest ---


def _write_dataset(reader: _Reader, found: Scan, jobs: int) -> Dataset:
    config, ledger, store, tokenizer_id = reader.config, reader.ledger, reader.store, reader.tokenizer.id
    entries = [_entry(chunk, store, config, ledger) for chunk in reader.chunks]
    if config.on_bad_input == "fail":
        ledger.require_no_skips()  # in chunks that were in the store before
    _require_accounted(ledger.unaccounted_bytes, "the corpus")
    entries.sort(key=lambda entry: (entry["key"], entry["source"], entry["spans"][0]["path"]))
    dropped = apply_filters(entries, config, store)
    skips = {reason: row["pieces"] for reason, row in ledger.by_reason().items()}
    left_out = {reason: row["documents"] for reason, row in dropped.items()}
    name, splits, texts = dataset_id(entries, tokenizer_id), totals(entries), hashes(entries, store, *SPLITS)
    _require_documents(splits, [*skips.items(), *left_out.items()], ledger, config)
    folder = store / "datasets" / name
    manifest = {
        "kind": "dataset",
        "id": name,
        "tokenizer_id": tokenizer_id,
        "splits": splits,
        "chunks": entries,
        "ledger": ledger.to_json() | {"dropped": dropped, "beside": found.unread.by_suffix},
        "inputs": sorted(reader.inputs, key=lambda row: str(row["path"])),
        "corpus": result_fields(with_absolute_paths(config)),
        "files": {},
    }
    write_dataset_manifest(folder, manifest)
    return Dataset(
        id=name,
        folder=folder,
        tokenizer_id=tokenizer_id,
        **splits["train"],
        **{f"validation_{key}": value for key, value in splits["validation"].items()},
        duplicate_documents=len(texts) - len(np.unique(texts)),
        chunks=len(entries),
        chunks_made=jobs,
        source_bytes=ledger.source_bytes,
        skipped_bytes=ledger.skipped_bytes,
        unaccounted_bytes=ledger.unaccounted_bytes,
        skipped=skips,
        dropped=left_out,
        manifest_hash=hash_file(folder / MANIFEST),
        warnings=corpus_warnings(ledger, found.unread, config, name) + _short_lines(entries, splits, found, config),
        corpus_changed={row["path"]: row["blake3"] for row in reader.inputs}
        != {file.path: file.digest for file in found.all_files},
    )


def _entry(chunk: _Chunk, store: Path, config: CorpusConfig, ledger: Ledger) -> Entry:
    """The manifest's entry of a chunk. The counts of the chunk are added to the corpus's ledger."""
    manifest = read_manifest(store / "shards" / chunk.key)
    spans = []
    for (number, start, stop, _), counts in zip(chunk.spans, manifest["ledger"], strict=True):
        file, skips = chunk.group.files[number], counts.pop("skips")
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
    return {"key": chunk.key, "source": chunk.group.source, "spans": spans, **manifest["splits"]}


def _unit(file: SourceFile, config: CorpusConfig) -> str:
    return "JSON line" if file.kind == "jsonl" else unit_of(file.kind, config)


def _short_lines(entries: list[Entry], splits: Splits, found: Scan, config: CorpusConfig) -> list[str]:
    """A warning of short lines if the settings ask for lines. With corpus.document = auto it is only logged."""
    spans = [span for entry in entries for span in entry["spans"]]
    paths = {file.path for file in found.files if _unit(file, config) == "line"}
    tokens, text_bytes = (sum(row[name] for row in splits.values()) for name in ("tokens", "text_bytes"))
    warning = short_line_warning(spans, paths, tokens / max(1, text_bytes))
    if warning and config.document == "auto":
        _log.info("%s", warning)
    return [warning] if warning and config.document != "auto" else []


def _require_accounted(unaccounted_bytes: int, what: str) -> None:
    if unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {what} does not add up: {unaccounted_bytes} bytes unaccounted. This is a bug: report it"
        )


def _require_documents(splits: Splits, left_out: list[tuple[str, int]], ledger: Ledger, config: CorpusConfig) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out)
    read = f"{ledger.source_bytes:,} bytes of text read, left out: {reasons or 'nothing'}"
    if not splits["train"]["documents"]:
        paths = [path for some in (config.paths, *config.sources.values()) for path in some]
        causes = "; ".join(skip_causes(ledger, config))
        raise CorpusError(f"no training document in {', '.join(paths)}: {read} ({causes})")
    if not splits["validation"]["documents"]:
        if config.validation_paths:
            raise CorpusError(f"no document to validate on in {', '.join(config.validation_paths)}: {read}")
        raise CorpusError(
            f"the validation split is empty: none of {ledger.documents} documents fell into it, or stayed ({read}). "
            f"Raise corpus.validation_fraction (now {config.validation_fraction}), cut the text into smaller "
            "documents (corpus.document), or give corpus.validation_paths"
        )
