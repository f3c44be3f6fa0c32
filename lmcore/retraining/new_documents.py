"""The new documents of a dataset, compared with an earlier dataset, and the dataset split by age.

A document is new if no training or validation document of the earlier dataset has its hash. ``split_by_age`` makes a
dataset of the same chunks with two sources for each source, such as ``wiki (old)`` and ``wiki (new)``. Therefore old
text can have a share of its own (``dataset.weights``), and losses are known by age. Only a manifest is written.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.corpus.document_hashes import isin_sorted
from lmcore.dataset.filters import set_dropped_rows
from lmcore.dataset.manifest import AGES, Dataset, age_of, by_age, dataset_id, totals, write_dataset_manifest
from lmcore.dataset.shards import SPLITS, Shard
from lmcore.errors import StoreError
from lmcore.runs.seen_documents import SeenDocuments
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import hash_file
from lmcore.store.outputs import Output

Entry = dict[str, Any]


class NewDocuments(Output):
    """Figures of a dataset's documents that an earlier dataset does not have."""

    new_documents: int
    new_bytes: int
    """UTF-8 bytes of their text."""
    new_tokens: int
    new_validation_documents: int
    old_documents: int
    gone_documents: int
    """Training documents of the earlier dataset that this one does not have."""


def split_by_age(dataset: Dataset, earlier: Path) -> tuple[Dataset, NewDocuments]:
    """``dataset`` with each source split in two: documents that ``earlier`` has too, and new ones; and their figures.

    ``earlier`` is a folder datasets/<id>. Raises StoreError when it or one of its shards is missing.
    """
    manifest, before = read_manifest(dataset.folder), _documents(earlier)
    known = np.union1d(before.train, before.validation)
    entries = [part for entry in manifest["chunks"] for part in _parts(entry, dataset.store, known)]
    split = _written(dataset, {**manifest, "id": dataset_id(entries, dataset.tokenizer_id), "chunks": entries})
    figures = {age: totals([entry for entry in entries if age_of(entry["source"]) == age]) for age in AGES}
    new, old = figures["new"]["train"], figures["old"]["train"]
    here = SeenDocuments.from_dataset(dataset.folder).train
    return split, NewDocuments(
        new_documents=new["documents"],
        new_bytes=new["text_bytes"],
        new_tokens=new["tokens"],
        new_validation_documents=figures["new"]["validation"]["documents"],
        old_documents=old["documents"],
        gone_documents=int((~isin_sorted(before.train, here)).sum()),
    )


def _documents(earlier: Path) -> SeenDocuments:
    try:
        return SeenDocuments.from_dataset(earlier)
    except StoreError as error:
        raise StoreError(
            f"{error}. Without dataset {earlier.name} nobody knows which text is new: put it back (damaged shards: "
            "lm repair), or begin another model with retraining.model_name"
        ) from None


def tokens_by_source(dataset: Path) -> dict[str, int]:
    """Training tokens of every source that has documents."""
    tokens = Counter[str]()
    for entry in read_manifest(dataset)["chunks"]:
        if entry["train"]["documents"]:
            tokens[entry["source"]] += entry["train"]["tokens"]
    return tokens


def _parts(entry: Entry, store: Path, known: npt.NDArray[np.uint64]) -> Iterator[Entry]:
    """The entry's old and its new documents, as entries of their own; one that has none is left out.

    The chunk's text ranges, and with them its ledger, stay with the first of the two.
    """
    shards = {split: Shard.of_chunk(store, entry, split) for split in SPLITS}
    is_known = {split: isin_sorted(shard.hashes, known) for split, shard in shards.items()}
    parts = []
    for age in AGES:
        part = deepcopy(entry) | {"source": by_age(entry["source"], age)}
        for split, shard in shards.items():
            other = ~is_known[split] if age == "old" else is_known[split]
            set_dropped_rows(part[split], shard, other | ~shard.all_but(entry[split]["dropped"]))
        parts.append(part)
    kept = [part for part in parts if any(part[split]["documents"] for split in SPLITS)] or parts[:1]
    for part in kept[1:]:
        part["spans"] = []
    yield from kept


def _written(dataset: Dataset, manifest: dict[str, Any]) -> Dataset:
    """The dataset of a manifest, which is written unless it is there."""
    folder = dataset.folder.parent / manifest["id"]
    write_dataset_manifest(folder, manifest)
    changed = {"id": manifest["id"], "folder": folder, "manifest_hash": hash_file(folder / MANIFEST)}
    return dataset.model_copy(update=changed)
