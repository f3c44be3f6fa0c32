"""Hashes that name documents, and those of the documents that a store has forgotten.

``forgotten.jsonl`` in the store is permanent: its documents are in no dataset and no shard that is written in the store
(upkeep/forget.py). It holds hashes and names but no text, one event a line.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.store.json_files import read_lines

Hashes = npt.NDArray[np.uint64]
"""Hashes of documents: the first 64 bits of the BLAKE3 digest of the text."""
HASH = "[0-9a-fA-F]{16}"
"""A pattern of the name of a hash."""
FORGOTTEN = "forgotten.jsonl"


def parse_hashes(names: Iterable[str]) -> Hashes:
    """The hashes of these names, sorted and unique."""
    return np.array(sorted({int(name, 16) for name in names}), np.uint64)


def hash_names(hashes: Hashes) -> list[str]:
    """16 hexadecimal digits for each hash."""
    return [f"{value:016x}" for value in hashes.tolist()]


def isin_sorted(hashes: Hashes, wanted: Hashes) -> npt.NDArray[np.bool_]:
    """Which of ``hashes`` are among ``wanted``, which is sorted. np.isin would sort all hashes."""
    if not len(wanted):
        return np.zeros(len(hashes), np.bool_)
    found: npt.NDArray[np.bool_] = wanted[np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)] == hashes
    return found


def is_validation(document_hash: int, fraction: float) -> bool:
    """True if the hash is in the lowest ``fraction``; the same for a text in every corpus."""
    return document_hash < fraction * 2**64


def forgotten_events(store: Path) -> list[dict[str, Any]]:
    """The forget events of a store, oldest first: time, documents, chunks, datasets {old: new}, runs, versions."""
    return read_lines(store / FORGOTTEN)


def forgotten_hashes(store: Path) -> Hashes:
    """The hashes of all documents that the store has forgotten, sorted."""
    return parse_hashes(name for event in forgotten_events(store) for name in event["documents"])


def current_dataset_id(store: Path, dataset: str) -> str:
    """The present id of a dataset. It changes when documents of the dataset are forgotten."""
    for event in forgotten_events(store):
        dataset = event["datasets"].get(dataset) or dataset
    return dataset
