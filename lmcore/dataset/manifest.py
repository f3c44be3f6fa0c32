"""A dataset: its figures, and the manifest that lists its chunks, dropped rows, ledger and source files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lmcore.corpus.hash_index import HashIndex
from lmcore.dataset.shards import SPLITS
from lmcore.errors import StoreError
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, manifest_bytes, read_manifest, verify_artifact
from lmcore.store.files import hash_file, write_file
from lmcore.store.outputs import Output

Entry = dict[str, Any]
"""A chunk in a manifest: key, source, text ranges (``spans``), and for each split its figures and dropped rows."""

Splits = dict[str, dict[str, int]]
"""Documents, tokens and text bytes of each split."""

Age = Literal["old", "new"]
AGES: tuple[Age, Age] = ("old", "new")


class Dataset(Output):
    """A tokenized corpus in the store, in figures."""

    id: str
    folder: Path
    tokenizer_id: str
    documents: int
    tokens: int
    text_bytes: int
    validation_documents: int
    validation_tokens: int
    validation_text_bytes: int
    duplicate_documents: int
    chunks: int
    chunks_made: int
    """Chunks that were not in the store before."""
    source_bytes: int
    skipped_bytes: int
    unaccounted_bytes: int
    skipped: dict[str, int]
    """Pieces by reason."""
    dropped: dict[str, int]
    """Documents by reason."""
    manifest_hash: str
    """The hash of manifest.json: another corpus may give the same chunks and another ledger."""
    warnings: list[str] = Field(default_factory=list)
    """Sentences about text that was lost or not read."""
    corpus_changed: bool
    """A file changed after the corpus was scanned. The manifest says what was read; the next start reads the rest."""

    @property
    def store(self) -> Path:
        return self.folder.parent.parent

    def ledger_summary(self) -> str:
        """The ledger in one line."""
        reasons = ", ".join(f"{pieces:,} {reason}" for reason, pieces in self.skipped.items())
        skipped = f", {self.skipped_bytes:,} of them skipped (pieces and whole files: {reasons})" * bool(self.skipped)
        dropped = "".join(f", {count:,} documents left out as {reason}" for reason, count in self.dropped.items())
        changed = ", the corpus was changed meanwhile" * self.corpus_changed
        unaccounted = f", {self.unaccounted_bytes} unaccounted"
        return f"{self.source_bytes:,} bytes of text read{skipped}{dropped}{unaccounted}{changed}"

    def verify(self) -> None:
        """Raise StoreError unless manifest and chunks are complete, and are those of the present corpus."""
        if self.corpus_changed:
            raise StoreError("the corpus was changed while it was made")
        if hash_file(self.folder / MANIFEST) != self.manifest_hash:
            raise StoreError(f"{self.folder / MANIFEST} was replaced by another read of the corpus")
        verify_chunks(self.folder)


def verify_chunks(dataset: Path) -> None:
    """Raise StoreError for the first shard that is missing, truncated or changed. Unchanged files are not read."""
    store = dataset.parent.parent
    try:
        with HashIndex(store) as index:
            for key in {chunk["key"] for chunk in read_manifest(dataset)["chunks"]}:
                verify_artifact(store / "shards" / key, index.hash_of)
    except StoreError as error:
        raise StoreError(f"{error} (lm repair {dataset.name} --store {store} makes it again)") from None


def dataset_id(entries: list[Entry], tokenizer_id: str) -> str:
    """The name of the documents of some entries, whatever their files."""
    content = [[entry["key"], entry["source"], *(entry[split]["dropped"] for split in SPLITS)] for entry in entries]
    return fingerprint(FORMAT_VERSION, tokenizer_id, content)


def totals(entries: list[Entry]) -> Splits:
    """Documents, tokens and text bytes of each split of some entries, without dropped rows."""
    names = ("documents", "tokens", "text_bytes")
    return {split: {name: sum(entry[split][name] for entry in entries) for name in names} for split in SPLITS}


def text_ranges(manifest: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(key, text ranges) of each chunk. Of a chunk that was split by age, only the first entry has them."""
    return ((entry["key"], entry["spans"]) for entry in manifest["chunks"] if entry["spans"])


def write_dataset_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a dataset's manifest, again if its files have other paths now.

    An equal one only gets a new time, which protects it from gc for a while.
    """
    path, content = folder / MANIFEST, manifest_bytes(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() == content:
        os.utime(path)
    else:
        write_file(path, content)


# --- sources that were split by age, such as ``wiki (old)`` and ``wiki (new)`` ---


def by_age(source: str, age: Age) -> str:
    """The name of the old or the new part of a source."""
    return f"{source} ({age})"


def base_source(source: str) -> str:
    """The source without its age."""
    return source.removesuffix(" (old)").removesuffix(" (new)")


def age_of(source: str) -> Age:
    """The age that a source's name states. A source that was not split by age is new."""
    return "old" if source == by_age(base_source(source), "old") else "new"
