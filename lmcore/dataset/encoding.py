"""Encode chunks into shards: one job for each chunk, on threads, processes, or any executor of concurrent.futures.

A job writes shards/<key>/: a shard for each split, and every skipped piece with its place. The folder is named by
content, so a job whose worker died is simply run again.
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
from typing import Any

import numpy as np

from lmcore.corpus.document_hashes import forgotten_hashes, is_validation
from lmcore.corpus.documents import Document, parse
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.text_range import TextRange
from lmcore.dataset.shards import SPLITS, Rows, Shard, blanked, shard_path, write_quarantine, write_shard
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import write_artifact
from lmcore.store.files import hash_text
from lmcore.tokenizer.tokenizer import Tokenizer

_BATCH_BYTES = 2**20
_LEDGER = ("documents", "source_bytes", "document_bytes", "separator_bytes", "normalized_documents")
"""Counts of a text range that the manifest of a chunk keeps."""


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


def encode_all(
    jobs: Iterable[tuple[Job, int]], workers: int, executor: Executor | None, progress: Callable[[int], None]
) -> int:
    """Run jobs as they come, and return their number. ``progress`` gets the bytes that come with a job when it is done.

    Only a few jobs wait at a time, so memory is bounded. The first error of a job ends the others.
    """
    count = workers or os.cpu_count() or 1
    pending: deque[tuple[Future[None], int]] = deque()
    abandoned, total = threading.Event(), 0

    def finish_one() -> None:
        future, size = pending.popleft()
        future.result()
        progress(size)

    with ExitStack() as stack:
        pool = executor or stack.enter_context(ThreadPoolExecutor(count, "encode"))
        # An event cannot be sent to another process, and the owner of an executor cancels its jobs.
        extra = [] if executor else [abandoned.is_set]
        # A job can use every core while the others parse, and at the end.
        threads = 1 if executor else count
        try:
            for job, size in jobs:
                total += 1
                pending.append((pool.submit(encode, replace(job, threads=threads), *extra), size))
                if len(pending) > 2 * count:
                    finish_one()
            while pending:
                finish_one()
        finally:
            abandoned.set()
            for future, _ in pending:
                future.cancel()
    return total


def encode(job: Job, is_abandoned: Callable[[], bool] = lambda: False) -> None:
    """Write the chunk's artifact.

    Raises CorpusError if a ledger does not add up, or for bad input if corpus.on_bad_input is "fail". Raises
    CancelledError before anything is written if ``is_abandoned`` returns True.
    """
    tokenizer = _open_tokenizer(job.tokenizer)
    ledgers = [Ledger() for _ in job.ranges]
    parts = list(zip(job.ranges, ledgers, strict=True))
    encoded = []
    for batch in _batches(chain.from_iterable(parse(text_range, job.config, ledger) for text_range, ledger in parts)):
        if is_abandoned():
            raise CancelledError
        encoded.append(_encode_batch(batch, tokenizer, job.threads))
    if job.config.on_bad_input == "fail":
        for ledger in ledgers:
            ledger.require_no_skips()
    forgotten = forgotten_hashes(job.store)
    tokens, lengths, text_bytes, hashes = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
    tokens, lengths = blanked(tokens, lengths, np.isin(hashes, forgotten))
    splits: dict[str, dict[str, int]] = {}
    about = {"kind": "chunk", "splits": splits, "ledger": [_ledger_row(*part) for part in parts]}
    with write_artifact(job.store / "shards" / job.key, lambda: about) as folder:
        for split, rows in zip(SPLITS, _split(hashes, job.split), strict=True):
            path, ids = shard_path(folder, split), tokens if rows.all() else tokens[np.repeat(rows, lengths)]
            columns = (lengths[rows], text_bytes[rows], np.flatnonzero(rows), hashes[rows])
            write_shard(path, ids, *columns, tokenizer_id=tokenizer.id, eos_id=tokenizer.eos_id)
            shard = Shard(path)
            splits[split] = shard.figures(shard.all_but([]))
        skips = ((number, skip) for number, ledger in enumerate(ledgers) for skip in ledger.skipped)
        write_quarantine(folder, [_quarantine_row(number, skip, forgotten) for number, skip in skips])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches of about a megabyte, which fit into the processor's cache. The last one may be empty."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.text_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _encode_batch(documents: list[Document], tokenizer: Tokenizer, threads: int) -> tuple[Any, ...]:
    """Ids of all documents with EOS; for each document the number of ids, the bytes of text and the hash."""
    tokens, lengths = tokenizer.encode_flat([document.utf8 for document in documents], threads)
    text_bytes = np.array([document.text_bytes for document in documents], np.int64)
    return tokens, lengths, text_bytes, np.array([document.hash for document in documents], np.uint64)


@lru_cache(maxsize=2)
def _open_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def _split(hashes: Any, split: str) -> tuple[Rows, Rows]:
    """The training and the validation documents, by the rule of ``is_validation``."""
    if split in SPLITS:
        held_out = np.full(len(hashes), split == "validation")
    else:
        fraction = float(split.removeprefix("hash:"))
        held_out = np.array([is_validation(value, fraction) for value in hashes.tolist()], np.bool_)
    return ~held_out, held_out


def _ledger_row(text_range: TextRange, ledger: Ledger) -> dict[str, Any]:
    skips = [[skip.offset, skip.length, skip.reason, *filter(None, [skip.detail])] for skip in ledger.skipped]
    return {"start": text_range.start, **{name: getattr(ledger, name) for name in _LEDGER}, "skips": skips}


def _quarantine_row(number: int, skip: Skip, forgotten: Any) -> dict[str, Any]:
    content = b"" if hash_text(skip.content) in forgotten else skip.content
    return {"span": number, "offset": skip.offset, "length": skip.length, "reason": skip.reason, "content": content}
