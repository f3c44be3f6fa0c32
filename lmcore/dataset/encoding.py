"""Encode chunks into shards: one job for each chunk, on threads, processes, or any executor of concurrent.futures.

A job parses the text ranges of a chunk, encodes the documents and writes shards/<key>/: a shard for each split, and
quarantine.arrow with every skipped piece and its place. The folder is named by content, so a job whose worker died is
simply run again.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from lmcore.corpus.document_hashes import forgotten_hashes, is_validation
from lmcore.corpus.documents import Document, parse
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.text_range import TextRange
from lmcore.dataset.shards import SPLITS, blanked, damage_named, shard_path, write_shard
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import write_artifact
from lmcore.store.files import hash_text
from lmcore.tokenizer.tokenizer import Tokenizer

QUARANTINE = "quarantine.arrow"
_BATCH_BYTES = 2**20


@dataclass(frozen=True)
class Job:
    """One chunk to encode. A job can be sent to another process or machine."""

    key: str
    ranges: list[TextRange]
    split: str
    config: CorpusConfig
    tokenizer: Path
    store: Path
    threads: int = 1
    """Threads that encode this chunk."""


def encode(job: Job, is_abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write the chunk's artifact.

    Raises CorpusError if a ledger does not add up, or for bad input if corpus.on_bad_input is "fail". Raises
    CancelledError before anything is written if ``is_abandoned`` returns True.
    """
    tokenizer = _open_tokenizer(job.tokenizer)
    ledgers = [Ledger() for _ in job.ranges]
    parts = zip(job.ranges, ledgers, strict=True)
    documents = chain.from_iterable(parse(text_range, job.config, ledger) for text_range, ledger in parts)
    encoded = [_encode_batch([], tokenizer, 1)]
    for batch in _batches(documents):
        if is_abandoned():
            raise CancelledError
        encoded.append(_encode_batch(batch, tokenizer, job.threads))
    if job.config.on_bad_input == "fail":
        for ledger in ledgers:
            ledger.require_no_skips()
    forgotten = forgotten_hashes(job.store)
    tokens, lengths, text_bytes, hashes = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
    tokens, lengths = blanked(tokens, lengths, np.isin(hashes, forgotten))
    columns = (tokens, lengths, text_bytes, hashes)
    counts: dict[str, Any] = {}
    ledger_rows = [_ledger_row(*pair) for pair in zip(job.ranges, ledgers, strict=True)]
    about = {"kind": "chunk", "splits": counts, "ledger": ledger_rows}
    with write_artifact(job.store / "shards" / job.key, lambda: about) as folder:
        for split, kept in zip(SPLITS, _split(hashes, job.split), strict=True):
            counts[split] = _write_split(shard_path(folder, split), columns, kept, tokenizer)
        skips = [(number, skip) for number, ledger in enumerate(ledgers) for skip in ledger.skipped]
        write_quarantine(folder / QUARANTINE, [_quarantine_row(*pair, forgotten) for pair in skips])


def _write_split(path: Path, columns: tuple[Any, ...], kept: Any, tokenizer: Tokenizer) -> dict[str, int]:
    """Write the shard of the documents in ``kept``, and return their counts."""
    tokens, lengths, text_bytes, hashes = columns
    tokens = tokens if kept.all() else tokens[np.repeat(kept, lengths)]
    lengths, text_bytes, hashes = lengths[kept], text_bytes[kept], hashes[kept]
    about: dict[str, Any] = {"tokenizer_id": tokenizer.id, "eos_id": tokenizer.eos_id}
    write_shard(path, tokens, lengths, text_bytes, np.flatnonzero(kept), hashes, **about)
    return {
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "text_bytes": int(text_bytes.sum()),
        "longest_bytes": int(text_bytes.max(initial=0)),
    }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches of about a megabyte, which fit into the processor's cache."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.text_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(documents: list[Document], tokenizer: Tokenizer, threads: int) -> tuple[Any, ...]:
    """Ids of all documents with EOS; for each document the number of ids, the bytes of text and the hash."""
    tokens, lengths = tokenizer.encode_flat([document.utf8 for document in documents], threads)
    text_bytes = np.array([document.text_bytes for document in documents], np.int64)
    return tokens, lengths, text_bytes, np.array([document.hash for document in documents], np.uint64)


@lru_cache(maxsize=2)
def _open_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def _split(hashes: Any, split: str) -> tuple[Any, Any]:
    """Masks of the training and the validation documents, by the rule of ``is_validation``."""
    if split in SPLITS:
        held_out = np.full(len(hashes), split == "validation")
    else:
        fraction = float(split.removeprefix("hash:"))
        held_out = np.array([is_validation(value, fraction) for value in hashes.tolist()], np.bool_)
    return ~held_out, held_out


def _ledger_row(text_range: TextRange, ledger: Ledger) -> dict[str, Any]:
    return {
        "start": text_range.start,
        "documents": ledger.documents,
        "source_bytes": ledger.source_bytes,
        "document_bytes": ledger.document_bytes,
        "separator_bytes": ledger.separator_bytes,
        "normalized_documents": ledger.normalized_documents,
        "skips": [
            [skip.offset, skip.length, skip.reason, *([skip.detail] if skip.detail else [])] for skip in ledger.skipped
        ],
    }


def _quarantine_row(number: int, skip: Skip, forgotten: Any) -> dict[str, Any]:
    content = b"" if hash_text(skip.content) in forgotten else skip.content
    return {"span": number, "offset": skip.offset, "length": skip.length, "reason": skip.reason, "content": content}


def write_quarantine(path: Path, pieces: list[dict[str, Any]]) -> None:
    """Write skipped pieces: number of the text range, offset, length, reason, content (only the head if too long)."""
    types = {"span": pa.int32(), "offset": pa.int64(), "length": pa.int64(), "reason": pa.string()}
    types["content"] = pa.large_binary()
    batch = pa.record_batch({name: pa.array([row[name] for row in pieces], kind) for name, kind in types.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_quarantine(chunk_folder: Path) -> list[dict[str, Any]]:
    """The rows that ``write_quarantine`` wrote. Raises StoreError if the file is missing or damaged."""
    with damage_named(chunk_folder / QUARANTINE):
        table = pa.ipc.open_file(pa.memory_map(str(chunk_folder / QUARANTINE))).read_all()
        pieces: list[dict[str, Any]] = table.to_pylist()
        return pieces


class EncodingPool:
    """Runs jobs on workers. Only a few jobs wait at a time, so memory is bounded."""

    def __init__(self, workers: int, executor: Executor | None, progress: Callable[[int], None]) -> None:
        self.jobs = 0
        self._progress = progress
        self._pending: deque[tuple[Future[None] | None, int]] = deque()
        self._stack = ExitStack()
        count = workers or os.cpu_count() or 1
        # A job can use every core while the others parse, and at the end.
        self._threads_each = 1 if executor else count
        self._abandoned = threading.Event()
        # An event cannot be sent to another process, and the owner of an executor cancels its jobs.
        self._extra = [] if executor else [self._abandoned.is_set]
        self._executor = executor or self._stack.enter_context(ThreadPoolExecutor(count, "encode"))
        self._waiting = 2 * count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            while kind is None and self._pending:
                self._finish_one()
        finally:
            self._abandoned.set()
            for future, _ in self._pending:
                future.cancel() if future is not None else None
            self._stack.close()

    def submit(self, job: Job, stored_bytes: int) -> None:
        """Start a job. Waits while too many jobs are pending, and raises the error of an earlier job."""
        self.jobs += 1
        self._add(self._executor.submit(encode, replace(job, threads=self._threads_each), *self._extra), stored_bytes)

    def skip(self, stored_bytes: int) -> None:
        """Count bytes that need no job as done."""
        self._add(None, stored_bytes)

    def _add(self, future: Future[None] | None, stored_bytes: int) -> None:
        self._pending.append((future, stored_bytes))
        while len(self._pending) > self._waiting or (self._pending and self._pending[0][0] is None):
            self._finish_one()

    def _finish_one(self) -> None:
        future, stored_bytes = self._pending.popleft()
        if future is not None:
            future.result()
        self._progress(stored_bytes)
