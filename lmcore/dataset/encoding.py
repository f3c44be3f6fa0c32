"""Chunks to shards: one job a chunk, on threads, processes, or anything with the interface of concurrent.futures.

A job parses a chunk's spans, encodes the documents and writes shards/<key>/: a shard a split, and quarantine.arrow
with every piece that became no document and its place. Its result is on disk, named by content, so a job that
dies is simply done again, by anybody.
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

from lmcore.corpus.documents import Document, parse
from lmcore.corpus.exclusions import forgotten_hashes
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.spans import TextRange
from lmcore.dataset.shards import SPLITS, blanked, damage_named, shard_path, write_shard
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import write_artifact
from lmcore.store.files import hash_text
from lmcore.tokenizer.tokenizer import Tokenizer

QUARANTINE = "quarantine.arrow"
_BATCH_BYTES = 2**20


@dataclass(frozen=True)
class Job:
    """One chunk to encode; everything in it can be sent to another process or machine."""

    key: str
    spans: list[TextRange]
    split: str
    config: CorpusConfig
    tokenizer: Path
    store: Path
    threads: int = 1
    """That encode this chunk."""


def encode(job: Job, is_abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write the chunk's sealed folder.

    Raises CorpusError when a span's ledger does not add up, and for bad input where that is to end the run;
    CancelledError, having written nothing, once ``is_abandoned`` says that nobody waits for it.
    """
    tokenizer = _tokenizer(job.tokenizer)
    ledgers = [Ledger() for _ in job.spans]
    spans = zip(job.spans, ledgers, strict=True)
    documents = chain.from_iterable(parse(span, job.config, ledger) for span, ledger in spans)
    encoded = []
    for batch in _batches(documents):
        if is_abandoned():
            raise CancelledError
        encoded.append(_encoded(batch, tokenizer, job.threads))
    if job.config.on_bad_input == "fail":
        for ledger in ledgers:
            ledger.require_no_skips()
    nothing = _encoded([], tokenizer, 1)
    tokens, lengths, text_bytes, hashes = (np.concatenate(parts) for parts in zip(nothing, *encoded, strict=True))
    away = forgotten_hashes(job.store)
    tokens, lengths = blanked(tokens, lengths, np.isin(hashes, away))
    counts: dict[str, Any] = {}
    about = {
        "kind": "chunk",
        "splits": counts,
        "ledger": [_account(*pair) for pair in zip(job.spans, ledgers, strict=True)],
    }
    with write_artifact(job.store / "shards" / job.key, lambda: about) as folder:
        for split, kept in zip(SPLITS, _split(hashes, job.split), strict=True):
            write_shard(
                shard_path(folder, split),
                tokens if kept.all() else tokens[np.repeat(kept, lengths)],
                lengths[kept],
                text_bytes[kept],
                np.flatnonzero(kept),
                hashes[kept],
                tokenizer_id=tokenizer.id,
                eos_id=tokenizer.eos_id,
            )
            counts[split] = {
                "documents": int(kept.sum()),
                "tokens": int(lengths[kept].sum()),
                "text_bytes": int(text_bytes[kept].sum()),
                "longest_bytes": int(text_bytes[kept].max(initial=0)),
            }
        pieces = [(number, skip) for number, ledger in enumerate(ledgers) for skip in ledger.skipped]
        write_quarantine(folder / QUARANTINE, [_piece(*piece, away) for piece in pieces])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Of about a megabyte: few enough to stay in the processor's cache, and for memory to be used again."""
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


def _encoded(documents: list[Document], tokenizer: Tokenizer, threads: int) -> tuple[Any, ...]:
    """Ids of all documents with their EOS, and per document: number of ids, bytes of text, hash."""
    tokens, lengths = tokenizer.encode_flat([document.utf8 for document in documents], threads)
    text_bytes = np.array([document.text_bytes for document in documents], np.int64)
    return tokens, lengths, text_bytes, np.array([document.hash for document in documents], np.uint64)


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def _split(hashes: Any, split: str) -> tuple[Any, Any]:
    """Which documents are trained on, and which validated on: as Document.is_validation has it."""
    if split in SPLITS:
        held_out = np.full(len(hashes), split == "validation")
    else:
        fraction = float(split.removeprefix("hash:"))
        held_out = np.array([value < fraction * 2**64 for value in hashes.tolist()], np.bool_)
    return ~held_out, held_out


def _account(span: TextRange, ledger: Ledger) -> dict[str, Any]:
    return {
        "start": span.start,
        "documents": ledger.documents,
        "source_bytes": ledger.source_bytes,
        "document_bytes": ledger.document_bytes,
        "separator_bytes": ledger.separator_bytes,
        "filtered_documents": ledger.filtered_documents,
        "filtered_bytes": ledger.filtered_bytes,
        "normalized_documents": ledger.normalized_documents,
        "skips": [
            [skip.offset, skip.length, skip.reason, *([skip.detail] if skip.detail else [])] for skip in ledger.skipped
        ],
    }


def _piece(span: int, skip: Skip, forgotten: Any) -> dict[str, Any]:
    content = b"" if hash_text(skip.content) in forgotten else skip.content
    return {"span": span, "offset": skip.offset, "length": skip.length, "reason": skip.reason, "content": content}


def write_quarantine(path: Path, pieces: list[dict[str, Any]]) -> None:
    """The pieces themselves, by span, offset, length, reason and content; of one that is too long, the beginning."""
    types = {"span": pa.int32(), "offset": pa.int64(), "length": pa.int64(), "reason": pa.string()}
    types["content"] = pa.large_binary()
    batch = pa.record_batch({name: pa.array([row[name] for row in pieces], kind) for name, kind in types.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_quarantine(chunk_folder: Path) -> list[dict[str, Any]]:
    """What ``write_quarantine`` was given. Raises StoreError when it is missing or damaged."""
    with damage_named(chunk_folder / QUARANTINE):
        table = pa.ipc.open_file(pa.memory_map(str(chunk_folder / QUARANTINE))).read_all()
        pieces: list[dict[str, Any]] = table.to_pylist()
        return pieces


class Encoders:
    """Jobs in flight: as many as there are workers and a few waiting, so memory is bounded."""

    def __init__(self, workers: int, executor: Executor | None, progress: Callable[[int], None]) -> None:
        self.jobs = 0
        self._progress = progress
        self._pending: deque[tuple[Future[None] | None, int]] = deque()
        self._stack = ExitStack()
        count = workers or os.cpu_count() or 1
        # Beside a job that parses, or at the end the last one, another may use every core.
        self._threads_each = 1 if executor else count
        self._abandoned = threading.Event()
        # An event cannot be sent to another process, and whoever lends an executor ends its jobs.
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
        """Start a job; waits while too many are in flight, and raises what an earlier one raised."""
        self.jobs += 1
        self._add(self._executor.submit(encode, replace(job, threads=self._threads_each), *self._extra), stored_bytes)

    def pass_over(self, stored_bytes: int) -> None:
        """Count bytes that need no job."""
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
