"""What is new in a dataset since another was made, and the same text told apart by age.

A document is new if no training or validation document of the earlier dataset has its hash. ``told_apart`` makes a
dataset of the same chunks in which every source is two, such as ``wiki (old)`` and ``wiki (new)``: so old text can be
replayed at a share of its own (``dataset.weights``), and losses come by age. It costs a manifest: nothing is encoded.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmcore.errors import StoreError
from lmcore.shards import SPLITS, Shard, shard_path
from lmcore.store import MANIFEST, Output, hash_file, manifest_bytes, read_manifest, write_file
from lmcore.tokenization import Dataset, dataset_id

Age = Literal["old", "new"]
AGES: tuple[Age, Age] = ("old", "new")
Entry = dict[str, Any]
_FIGURES = ("documents", "tokens", "text_bytes")


class News(Output):
    """What a dataset has that an earlier one has not, in figures."""

    dataset_id: str
    """Of the text told apart by age."""
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
    """Training documents of the earlier dataset that are no longer there."""

    def verify(self) -> None:
        """The datasets that it compares are verified by themselves."""


def by_age(source: str, age: Age) -> str:
    """The name of the part of a source that is old, or new."""
    return f"{source} ({age})"


def age_of(source: str) -> Age:
    """Of a source; of one that is not told apart, all is new."""
    return "old" if source == by_age(undated(source), "old") else "new"


def undated(source: str) -> str:
    """The source that a part by age is of."""
    for age in AGES:
        source = source.removesuffix(f" ({age})")
    return source


def told_apart(dataset: Dataset, earlier: Path) -> tuple[Dataset, News]:
    """The documents of ``dataset``, each source as two: what ``earlier``, a folder datasets/<id>, has too; the rest.

    Raises StoreError when ``earlier`` or one of its shards is gone: what is new can then not be known.
    """
    store = dataset.folder.parent.parent
    manifest = read_manifest(dataset.folder)
    known = document_hashes(earlier)
    entries = [part for entry in manifest["chunks"] for part in _parts(entry, store, known)]
    name = dataset_id(entries, dataset.tokenizer_id)
    apart = _written(dataset, {**manifest, "id": name, "chunks": entries})
    figures = {age: _totals(entries, age, "train") for age in AGES}
    here = document_hashes(dataset.folder, "train")
    news = News(
        dataset_id=name,
        since=earlier.name,
        new_documents=figures["new"]["documents"],
        new_bytes=figures["new"]["text_bytes"],
        new_tokens=figures["new"]["tokens"],
        new_validation_documents=_totals(entries, "new", "validation")["documents"],
        old_documents=figures["old"]["documents"],
        old_tokens=figures["old"]["tokens"],
        gone_documents=int((~np.isin(document_hashes(earlier, "train"), here)).sum()),
    )
    return apart, news


def document_hashes(dataset: Path, *splits: str) -> npt.NDArray[np.uint64]:
    """Of the documents of a dataset, of all splits if none is named, each hash once."""
    try:
        chunks = read_manifest(dataset)["chunks"]
        found = [
            np.delete(_shard(entry, dataset.parent.parent, split).hashes, entry[split]["dropped"])
            for entry in chunks
            for split in splits or SPLITS
        ]
    except StoreError as error:
        raise StoreError(
            f"{error}. What is new since dataset {dataset.name} can only be told with it: put it back "
            "(python -m lmcore repair), or train anew with retraining.start = scratch"
        ) from None
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def tokens_by_source(dataset: Path) -> dict[str, int]:
    """Training tokens of every source that has documents."""
    tokens: dict[str, int] = {}
    for entry in read_manifest(dataset)["chunks"]:
        if entry["train"]["documents"]:
            tokens[entry["source"]] = tokens.get(entry["source"], 0) + entry["train"]["tokens"]
    return tokens


def _shard(entry: Entry, store: Path, split: str) -> Shard:
    return Shard(shard_path(store / "shards" / entry["key"], split))


def _parts(entry: Entry, store: Path, known: npt.NDArray[np.uint64]) -> Iterator[Entry]:
    """The entry's old and its new documents, as entries of their own; one that has none is left out.

    The chunk's spans, and with them its account, stay with the first of the two.
    """
    shards = {split: _shard(entry, store, split) for split in SPLITS}
    is_known = {split: np.isin(shard.hashes, known) for split, shard in shards.items()}
    parts = []
    for age in AGES:
        part = deepcopy(entry) | {"source": by_age(entry["source"], age)}
        for split, shard in shards.items():
            stays = is_known[split] if age == "old" else ~is_known[split]
            stays[entry[split]["dropped"]] = False
            part[split] |= _figures(shard, stays)
        parts.append(part)
    kept = [part for part in parts if any(part[split]["documents"] for split in SPLITS)] or parts[:1]
    for part in kept[1:]:
        part["spans"] = []
    yield from kept


def _figures(shard: Shard, stays: npt.NDArray[np.bool_]) -> Entry:
    return {
        "dropped": np.flatnonzero(~stays).tolist(),
        "documents": int(stays.sum()),
        "tokens": int(np.diff(shard.offsets)[stays].sum()),
        "text_bytes": int(shard.text_bytes[stays].sum()),
        "longest_bytes": int(shard.text_bytes[stays].max(initial=0)),
    }


def _totals(entries: list[Entry], age: Age, split: str) -> dict[str, int]:
    mine = [entry[split] for entry in entries if age_of(entry["source"]) == age]
    return {name: sum(figures[name] for figures in mine) for name in _FIGURES}


def _written(dataset: Dataset, manifest: dict[str, Any]) -> Dataset:
    """The dataset of a manifest, which is written unless it is there."""
    folder = dataset.folder.parent / str(manifest["id"])
    content = manifest_bytes({key: value for key, value in manifest.items() if key != "format_version"})
    folder.mkdir(exist_ok=True)
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != content:
        write_file(folder / MANIFEST, content)
    return dataset.model_copy(
        update={"id": manifest["id"], "folder": folder, "manifest_hash": hash_file(folder / MANIFEST)}
    )
