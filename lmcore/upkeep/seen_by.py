"""Which datasets hold a document, and which runs and versions have seen it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from lmcore.corpus.document_hashes import Hashes, forgotten_events, isin_sorted
from lmcore.corpus.document_query import Cut, DocumentQuery, Match
from lmcore.dataset.shards import SPLITS, Shard
from lmcore.errors import RegistryError, StoreError
from lmcore.registry.versions import Version, all_versions
from lmcore.runs.run import Run, run_folders
from lmcore.runs.seen_documents import SeenDocuments
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.layout import path_in_store


class Sighting(NamedTuple):
    """Something that holds one of the documents, has seen one, or cannot be read."""

    kind: Literal["dataset", "run", "version", "unreadable"]
    name: str
    why: str
    """The splits of a dataset that hold it; for a run or version the splits of its dataset, its initial model, or when
    the document was forgotten; the error where something cannot be read."""


class Sightings(NamedTuple):
    """The answer of ``seen_by``."""

    rows: list[Sighting]
    match: Match
    """The documents that a dataset holds, or held until they were forgotten."""

    def names(self, kind: str) -> list[str]:
        return [row.name for row in self.rows if row.kind == kind]


class Training(NamedTuple):
    """A run or a version, and what it was trained on."""

    kind: Literal["run", "version"]
    name: str
    folder: Path
    record: dict[str, Any]
    """The content of the run's config.json."""
    origin: str
    """Path in the store of what it began with; empty for new weights."""

    @classmethod
    def from_run(cls, folder: Path) -> Self:
        """Raises StoreError when the run's record is damaged."""
        run = Run.open(folder)
        origin = path_in_store(run.store, Path(run.config.train.init_from)) if run.config.train.init_from else ""
        return cls("run", folder.name, run.folder, run.record, origin)

    @classmethod
    def from_version(cls, version: Version) -> Self:
        """Raises RegistryError when the receipt is damaged."""
        receipt = version.receipt()
        return cls(
            "version", str(version), version.folder, receipt["record"], (receipt["origin"] or {}).get("path", "")
        )

    @property
    def datasets(self) -> list[str]:
        """Its own first; of an older version of this program then those of the lineage."""
        return list(self.record.get("datasets", [self.record["identity"]["dataset_id"]]))

    def why(self, holders: dict[str, str], wanted: Hashes) -> str:
        """How it saw one of the documents; empty if it did not. ``holders`` are datasets that hold one."""
        own, *before = self.datasets
        if own in holders:
            return holders[own]
        seen = SeenDocuments.load(self.folder)
        if seen is None:
            return f"began with {self.origin}" if any(name in holders for name in before) else ""
        splits = [split for split, hashes in seen._asdict().items() if isin_sorted(wanted, hashes).any()]
        return (f"began with {self.origin}" if self.origin else " and ".join(splits)) if splits else ""


def seen_by(store: Path, query: DocumentQuery) -> Sightings:
    """What holds the documents, and what saw them.

    A run has seen a document when its dataset holds it or held it until it was forgotten, or when the list of documents
    beside its weights has it. A dataset, run or version that cannot be read may have it too, so it is named. Raises
    ConfigError when the store is outside LM_DATA_ROOTS.
    """
    check_allowed(store, "store")
    holders: dict[str, str] = {}
    unreadable: list[Sighting] = []
    present: dict[Cut, Hashes] = {}
    for folder in artifact_folders(store, "datasets"):
        try:
            manifest = read_manifest(folder)
            cut = query.cut(manifest["corpus"])
            held = _held(store, manifest, cut.hashes)
        except (StoreError, OSError) as error:
            unreadable.append(Sighting("unreadable", folder.name, str(error)))
            continue
        there = np.union1d(held["train"], held["validation"])
        if len(there):
            match = cut.match(there)
            splits = " and ".join(split for split in SPLITS if len(held[split]))
            holders[folder.name] = splits + (f", {match}" if match.documents > 1 else "")
        present[cut] = np.union1d(present.get(cut, there), there)
    match = best_match(query, present, purged(store))
    wanted = np.unique(np.concatenate([cut.hashes for cut in query.cuts]))
    rows = [Sighting("dataset", name, why) for name, why in holders.items()]
    return Sightings([*unreadable, *rows, *_trained_on(store, holders, wanted)], match)


def artifact_folders(store: Path, kind: str) -> list[Path]:
    """The folders of all datasets or shards. A folder without a manifest is what a killed run left."""
    return sorted(path.parent for path in (store / kind).glob(f"[!.]*/{MANIFEST}"))


def best_match(query: DocumentQuery, present: dict[Cut, Hashes], earlier: Hashes) -> Match:
    """The match of the way to cut the file that found most. ``earlier``: hashes that were found and forgotten."""
    cuts = present or {query.cut({}): np.empty(0, np.uint64)}
    matches = [cut.match(np.union1d(there, earlier)) for cut, there in cuts.items()]
    return max(matches, key=lambda match: len(match.found))


def purged(store: Path) -> Hashes:
    """Documents that were in the store until they were forgotten, sorted."""
    events = forgotten_events(store)
    names = {name for event in events for name in {*event["documents"]} - {*event.get("absent", [])}}
    return np.array(sorted(int(name, 16) for name in names), np.uint64)


def _held(store: Path, manifest: dict[str, Any], wanted: Hashes) -> dict[str, Hashes]:
    """Which of the documents each split of a dataset holds, sorted."""
    found: dict[str, list[Hashes]] = {split: [wanted[:0]] for split in SPLITS}
    for entry in manifest["chunks"]:
        for split in SPLITS:
            shard = Shard.of_chunk(store, entry, split)
            kept = shard.hashes[shard.all_but(entry[split]["dropped"])]
            found[split].append(kept[isin_sorted(kept, wanted)])
    return {split: np.unique(np.concatenate(parts)) for split, parts in found.items()}


def _trained_on(store: Path, holders: dict[str, str], wanted: Hashes) -> Iterator[Sighting]:
    """Runs and versions that saw one of the documents, and those that cannot be read."""
    seen = _had_seen(store, set(wanted.tolist()))
    ways: dict[str, Callable[[], Training]] = {
        **{str(version): partial(Training.from_version, version) for version in all_versions(store)},
        **{folder.name: partial(Training.from_run, folder) for folder in run_folders(store)},
    }
    for name, opened in ways.items():
        try:
            training = opened()
            if why := training.why(holders, wanted):
                seen.setdefault((training.kind, name), why)
        except (StoreError, RegistryError, OSError, LookupError) as error:
            yield Sighting("unreadable", name, str(error))
    yield from (Sighting(kind, name, why) for (kind, name), why in seen.items())


def _had_seen(store: Path, documents: set[int]) -> dict[tuple[Literal["run", "version"], str], str]:
    """Runs and versions that saw one before it was forgotten."""
    seen: dict[tuple[Literal["run", "version"], str], str] = {}
    for event in forgotten_events(store):
        if documents & {int(name, 16) for name in event["documents"]}:
            why = f"until {event['time']}, when it was forgotten"
            seen |= {("run", name): why for name in event["runs"]}
            seen |= {("version", name): why for name in event["versions"]}
    return seen
