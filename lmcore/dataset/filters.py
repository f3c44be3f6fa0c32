"""Filters: which documents of a dataset are left out, and why.

The manifest lists the rows that are left out. So shards do not depend on each other or on filters, and a changed filter
encodes nothing. A document is left out for the first of these reasons: excluded, validation_text, too_short,
too_long_for_max_bytes, duplicate.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.corpus.document_hashes import Hashes, forgotten_hashes, isin_sorted
from lmcore.corpus.listing import excluded_hashes
from lmcore.dataset.manifest import Entry
from lmcore.dataset.shards import SPLITS, Rows, Shard
from lmcore.settings.config import CorpusConfig

_log = logging.getLogger(__name__)

Counts = dict[str, dict[str, int]]
"""Documents and bytes by reason."""


def apply_filters(entries: list[Entry], config: CorpusConfig, store: Path) -> Counts:
    """Set the dropped rows in the manifest's entries, with the figures without them, and return what was dropped.

    The entries must be in their final order: of equal documents the first one stays.
    """
    counts: Counts = {}
    excluded = np.union1d(_asked(entries, config, store), forgotten_hashes(store))
    held_out = np.unique(hashes(entries, store, "validation")) if config.validation_paths else excluded[:0]
    for split in SPLITS:
        first = _firsts(entries, store, split, config) if config.deduplicate else None
        for number, entry in enumerate(entries):
            shard = Shard.of_chunk(store, entry, split)
            reasons = {
                "excluded": isin_sorted(shard.hashes, excluded),
                "validation_text": isin_sorted(shard.hashes, held_out if split == "train" else held_out[:0]),
                "too_short": shard.text_bytes < config.min_bytes,
                "too_long_for_max_bytes": shard.text_bytes > config.max_bytes,
                "duplicate": np.zeros(len(shard), np.bool_) if first is None else ~first[number],
            }
            filter_rows(entry[split], shard, reasons, counts)
    return counts


def _asked(entries: list[Entry], config: CorpusConfig, store: Path) -> Hashes:
    """The hashes of corpus.exclude_documents. Logs how many are there: a file that is cut differently has none."""
    asked = excluded_hashes(config)
    if len(asked):
        found = int(isin_sorted(asked, np.unique(hashes(entries, store, *SPLITS))).sum())
        level = logging.INFO if found == len(asked) else logging.WARNING
        _log.log(level, "corpus.exclude_documents: %d of %d documents were found", found, len(asked))
    return asked


def _firsts(entries: list[Entry], store: Path, split: str, config: CorpusConfig) -> list[Rows]:
    """Per entry, which of its documents are the first with their text and of a length that stays.

    (Texts that normalization makes equal may have other lengths in their files.) Memory: 24 bytes a document.
    """
    shards = [Shard.of_chunk(store, entry, split) for entry in entries]
    everything = np.concatenate([shard.hashes for shard in shards])
    lengths = np.concatenate([shard.text_bytes for shard in shards])
    stays = np.flatnonzero((lengths >= config.min_bytes) & (lengths <= config.max_bytes))
    is_first = np.zeros(len(everything), np.bool_)
    is_first[stays[np.unique(everything[stays], return_index=True)[1]]] = True
    return np.split(is_first, np.cumsum([len(shard) for shard in shards]))[:-1]


def hashes(entries: list[Entry], store: Path, *splits: str) -> Hashes:
    """The hashes of all documents that are not dropped."""
    parts = [np.empty(0, np.uint64)]
    for entry in entries:
        for split in splits:
            shard = Shard.of_chunk(store, entry, split)
            parts.append(shard.hashes[shard.all_but(entry[split].get("dropped", []))])
    return np.concatenate(parts)


def filter_rows(figures: dict[str, Any], shard: Shard, reasons: dict[str, Rows], counts: Counts) -> None:
    """Drop rows from a split of an entry. Each row counts for the first of its reasons in ``counts``."""
    dropped = np.zeros(len(shard), np.bool_)
    for reason, rows in reasons.items():
        new = rows & ~dropped
        if new.any():
            row = counts.setdefault(reason, {"documents": 0, "bytes": 0})
            row["documents"] += int(new.sum())
            row["bytes"] += int(shard.text_bytes[new].sum())
            dropped |= new
    set_dropped_rows(figures, shard, dropped)


def set_dropped_rows(figures: dict[str, Any], shard: Shard, dropped: Rows) -> None:
    """Set the dropped rows of a split, and the figures of the others. If no row is dropped the shard is not read."""
    figures["dropped"] = np.flatnonzero(dropped).tolist()
    if dropped.any():
        figures |= shard.figures(~dropped)
