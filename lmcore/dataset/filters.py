"""Filters: which documents of a dataset are left out, and why.

The manifest lists the rows that are left out. So shards do not depend on each other or on filters, and a changed filter
encodes nothing. A document is left out for the first of these reasons: excluded, validation_text, too_short,
too_long_for_max_bytes, duplicate.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.corpus.document_hashes import forgotten_hashes, isin_sorted
from lmcore.corpus.listing import excluded_hashes
from lmcore.dataset.shards import SPLITS, Shard, shard_path
from lmcore.settings.config import CorpusConfig

_log = logging.getLogger(__name__)

Rows = npt.NDArray[Any]


def apply_filters(entries: list[dict[str, Any]], config: CorpusConfig, store: Path) -> dict[str, dict[str, int]]:
    """Set the dropped rows in the manifest's entries, with the figures without them; documents and bytes by reason.

    The entries must be in their final order: of equal documents the first one stays.
    """
    counts: dict[str, dict[str, int]] = {}
    asked = excluded_hashes(config)
    _log_found(asked, hashes(entries, store, *SPLITS))
    excluded = np.union1d(asked, forgotten_hashes(store))
    held_out = hashes(entries, store, "validation") if config.validation_paths else np.empty(0, np.uint64)
    for split in SPLITS:
        first = _firsts(entries, store, split, config) if config.deduplicate else None
        for number, entry in enumerate(entries):
            shard = _shard(entry, store, split)
            reasons = {
                "excluded": isin_sorted(shard.hashes, excluded),
                "validation_text": np.isin(shard.hashes, held_out) if split == "train" else None,
                "too_short": shard.text_bytes < config.min_bytes,
                "too_long_for_max_bytes": shard.text_bytes > config.max_bytes,
                "duplicate": None if first is None else ~first[number],
            }
            filter_rows(entry[split], shard, reasons, counts)
    return counts


def _log_found(excluded: npt.NDArray[np.uint64], there: npt.NDArray[np.uint64]) -> None:
    """Log how many documents were found: a file that is cut differently from the corpus excludes nothing."""
    if len(excluded):
        found = len(np.unique(there[isin_sorted(there, excluded)]))
        level = logging.INFO if found == len(excluded) else logging.WARNING
        _log.log(level, "corpus.exclude_documents: %d of %d documents were found", found, len(excluded))


def hashes(entries: list[dict[str, Any]], store: Path, *splits: str) -> npt.NDArray[np.uint64]:
    """The hashes of all documents that are not dropped."""
    parts = []
    for entry in entries:
        for split in splits:
            found = _shard(entry, store, split).hashes
            parts.append(np.delete(found, entry[split].get("dropped", [])))
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _shard(entry: dict[str, Any], store: Path, split: str) -> Shard:
    return Shard(shard_path(store / "shards" / entry["key"], split))


def _firsts(
    entries: list[dict[str, Any]], store: Path, split: str, config: CorpusConfig
) -> list[npt.NDArray[np.bool_]]:
    """Per entry, which of its documents are the first with their text and of a length that stays.

    (Texts that normalization makes equal may have other lengths in their files.) Memory: 24 bytes a document.
    """
    shards = [_shard(entry, store, split) for entry in entries]
    everything = np.concatenate([np.empty(0, np.uint64), *(shard.hashes for shard in shards)])
    lengths = np.concatenate([np.empty(0, np.int64), *(shard.text_bytes for shard in shards)])
    stays = np.flatnonzero((lengths >= config.min_bytes) & (lengths <= config.max_bytes))
    is_first = np.zeros(len(everything), np.bool_)
    is_first[stays[np.unique(everything[stays], return_index=True)[1]]] = True
    return np.split(is_first, np.cumsum([len(shard) for shard in shards]))[:-1]


def filter_rows(
    figures: dict[str, Any], shard: Shard, reasons: dict[str, Rows | None], counts: dict[str, dict[str, int]]
) -> None:
    """Drop rows from a split of an entry. Each row counts for the first of its reasons in ``counts``."""
    dropped = np.zeros(len(shard), np.bool_)
    for reason, rows in reasons.items():
        new = np.zeros_like(dropped) if rows is None else rows & ~dropped
        if new.any():
            row = counts.setdefault(reason, {"documents": 0, "bytes": 0})
            row["documents"] += int(new.sum())
            row["bytes"] += int(shard.text_bytes[new].sum())
            dropped |= new
    set_dropped_rows(figures, shard, dropped)


def set_dropped_rows(figures: dict[str, Any], shard: Shard, dropped: Rows) -> None:
    """Set the dropped rows of a split, and the figures of the remaining rows.

    ``figures`` must describe the whole shard if no row is dropped; the shard is not read then.
    """
    figures["dropped"] = np.flatnonzero(dropped).tolist()
    if dropped.any():
        kept = ~dropped
        figures["documents"] = int(kept.sum())
        figures["tokens"] = int(np.diff(shard.offsets)[kept].sum())
        figures["text_bytes"] = int(shard.text_bytes[kept].sum())
        figures["longest_bytes"] = int(shard.text_bytes[kept].max(initial=0))
