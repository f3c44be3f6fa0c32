"""The new documents of a dataset, compared with an earlier dataset, and the dataset split by age.

A document is new if no training or validation document of the earlier dataset has its hash. ``split_by_age`` makes a
dataset of the same chunks with two sources for each source, such as ``wiki (old)`` and ``wiki (new)``. Therefore old
text can have a share of its own (``dataset.weights``), and losses are known by age. Only a manifest is written.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.corpus.document_hashes import isin_sorted
from lmcore.dataset.filters import hashes, set_dropped_rows
from lmcore.dataset.manifest import Dataset, dataset_id, totals, write_dataset_manifest
from lmcore.dataset.shards import SPLITS, Shard, shard_path
from lmcore.dataset.source_age import AGES, age_of, by_age
from lmcore.errors import StoreError
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import hash_file
from lmcore.store.outputs import Output

Entry = dict[str, Any]


class NewDocuments(Output):
    """Figures of a dataset's documents that an earlier dataset does not have."""

    dataset_id: str
    """The id of the dataset split by age."""
    since: str
    """The id of the earlier dataset."""
    new_documents: int
    new_bytes: int
    """UTF-8 bytes of their text."""
    new_tokens: int
    new_validation_documents: int
    old_documents: int
    old_tokens: int
    gone_documents: int
    """Training documents of the earlier dataset that this one does not have."""

    def verify(self) -> None:
        """Nothing: the datasets are verified separately."""


def split_by_age(dataset: Dataset, earlier: Path) -> tuple[Dataset, NewDocuments]:
    """``dataset`` with each source split in two: documents that ``earlier`` has too, and new ones; and their figures.

    ``earlier`` is a folder datasets/<id>. Raises StoreError when it or one of its shards is missing.
    """
    store = dataset.folder.parent.parent
    manifest = read_manifest(dataset.folder)
    known = document_hashes(earlier)
    entries = [part for entry in manifest["chunks"] for part in _parts(entry, store, known)]
    name = dataset_id(entries, dataset.tokenizer_id)
    split = _written(dataset, {**manifest, "id": name, "chunks": entries})
    figures = {age: totals([entry for entry in entries if age_of(entry["source"]) == age]) for age in AGES}
    new, old = figures["new"]["train"], figures["old"]["train"]
    here = document_hashes(dataset.folder, "train")
    news = NewDocuments(
        dataset_id=name,
        since=earlier.name,
        new_documents=new["documents"],
        new_bytes=new["text_bytes"],
        new_tokens=new["tokens"],
        new_validation_documents=figures["new"]["validation"]["documents"],
        old_documents=old["documents"],
        old_tokens=old["tokens"],
        gone_documents=int((~isin_sorted(document_hashes(earlier, "train"), here)).sum()),
    )
    return split, news


def document_hashes(dataset: Path, *splits: str) -> npt.NDArray[np.uint64]:
    """Of the documents of a dataset, of all splits if none is named, each hash once."""
    try:
        chunks = read_manifest(dataset)["chunks"]
        return np.unique(hashes(chunks, dataset.parent.parent, *(splits or SPLITS)))
    except StoreError as error:
        raise StoreError(
            f"{error}. What is new since dataset {dataset.name} can only be told with it: put it back (shards that are "
            "damaged: lm repair), or begin another model with retraining.model_name"
        ) from None


def tokens_by_source(dataset: Path) -> dict[str, int]:
    """Training tokens of every source that has documents."""
    tokens: dict[str, int] = {}
    for entry in read_manifest(dataset)["chunks"]:
        if entry["train"]["documents"]:
            tokens[entry["source"]] = tokens.get(entry["source"], 0) + entry["train"]["tokens"]
    return tokens


def _parts(entry: Entry, store: Path, known: npt.NDArray[np.uint64]) -> Iterator[Entry]:
    """The entry's old and its new documents, as entries of their own; one that has none is left out.

    The chunk's text ranges, and with them its ledger, stay with the first of the two.
    """
    shards = {split: Shard(shard_path(store / "shards" / entry["key"], split)) for split in SPLITS}
    is_known = {split: isin_sorted(shard.hashes, known) for split, shard in shards.items()}
    parts = []
    for age in AGES:
        part = deepcopy(entry) | {"source": by_age(entry["source"], age)}
        for split, shard in shards.items():
            dropped = ~is_known[split] if age == "old" else is_known[split].copy()
            dropped[entry[split]["dropped"]] = True
            set_dropped_rows(part[split], shard, dropped)
        parts.append(part)
    kept = [part for part in parts if any(part[split]["documents"] for split in SPLITS)] or parts[:1]
    for part in kept[1:]:
        part["spans"] = []
    yield from kept


def _written(dataset: Dataset, manifest: dict[str, Any]) -> Dataset:
    """The dataset of a manifest, which is written unless it is there."""
    folder = dataset.folder.parent / str(manifest["id"])
    write_dataset_manifest(folder, manifest)
    return dataset.model_copy(
        update={"id": manifest["id"], "folder": folder, "manifest_hash": hash_file(folder / MANIFEST)}
    )
