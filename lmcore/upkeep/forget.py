"""Take a document out of a store: out of shards, datasets, quarantine, and what models wrote after reading it.

The event is written to forgotten.jsonl first, and from then on no dataset made here holds the document, even if the
corpus still does (exclusions.py). Then every dataset that kept it gives way to the same one without it, and the
document's ids go from the shards; rows keep their places, so nothing is encoded again and datasets that had left it
out stay as they are. Each step leaves a whole store, and the same command does what a kill left undone.

Weights cannot forget. The runs and versions that saw the document are named, and stay.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore import clock
from lmcore.corpus.document_query import DocumentQuery, isin_sorted
from lmcore.corpus.exclusions import FORGOTTEN, forgotten_hashes
from lmcore.dataset.encoding import QUARANTINE, read_quarantine, write_quarantine
from lmcore.dataset.filters import filter_rows
from lmcore.dataset.manifest import dataset_id, totals, write_dataset_manifest
from lmcore.dataset.shards import SPLITS, Shard, blanked, shard_path, write_shard
from lmcore.runs.run import Run, run_folders
from lmcore.store.artifacts import MANIFEST, content_of, read_manifest, verify_artifact, write_artifact
from lmcore.store.json_lines import append_line
from lmcore.store.layout import prepare_store
from lmcore.store.locks import locked, store_locked
from lmcore.store.outputs import Output
from lmcore.store.temporary import remove
from lmcore.upkeep.seen_by import best_match, dataset_folders, purged, seen_by

_WRITTEN = ("samples.jsonl", "report.md", "report.json", "report.png", "tensorboard")
"""What in a run's folder may repeat a document word for word."""

_Hashes = npt.NDArray[np.uint64]


class Forgotten(Output):
    """What was, or on a dry run would be, done about a document."""

    documents: list[str]
    """Hashes of the documents, found or not: none of them is in a dataset that is made here from now on."""
    absent: list[str]
    """Those of them that were never found here."""
    chunks: list[str]
    """Keys of chunks that held it, in a shard or in quarantine."""
    datasets: dict[str, str]
    """Datasets that held it -> the same without it; empty where nothing would be left of a split."""
    runs: list[str]
    """Runs that were trained or validated on it, or went on from one that was. Their weights stay as they are."""
    versions: list[str]
    """Likewise."""
    files: list[str]
    """Files of runs that are removed, because what a model wrote may repeat what it read."""
    corpus_paths: dict[str, int]
    """Files of the corpus -> how many of the documents stand in each, until its owner deletes them."""

    @property
    def summary(self) -> str:
        """How many of the documents were found."""
        found = len(self.documents) - len(self.absent)
        return f"found {found:,} of {len(self.documents):,} documents"

    def rows(self, dry_run: bool = False) -> list[dict[str, str]]:
        """As a table: what held it, who has seen it, and where it came from."""
        would, gives = ("would be", "would give") if dry_run else ("is", "gives")
        once = f"It {would} left out from now on"
        seen = "has seen it: its weights cannot forget. Train again without it, from new weights"
        came = "holds {} of the documents: delete what is theirs there too. This store leaves them out in any case"
        parts = [
            *((name, f"was not found in this store. {once}") for name in self.absent),
            *((f"shards/{name}", f"held it, and {would} written again without it") for name in self.chunks),
            *(
                (f"datasets/{name}", f"{gives} way to {to or 'nothing: it held no more'}")
                for name, to in self.datasets.items()
            ),
            *((name, f"may repeat it, and {would} removed") for name in self.files),
            *((name, seen) for name in (*self.runs, *self.versions)),
            *((path, came.format(f"{count:,}")) for path, count in self.corpus_paths.items()),
        ]
        return [{"what": what, "about it": about} for what, about in parts]


def forget(store: Path, document: str, dry_run: bool = False) -> Forgotten:
    """Purge documents, given as ``seen-by`` takes them: a hash, or a file.

    Raises RunError while a run that uses it is running, or somebody tokenizes, and StoreError when a run cannot say
    what it was trained on.
    """
    query = DocumentQuery.parse(document)
    store = prepare_store(store, creates=False)  # what a killed one set aside may hold the text
    with store_locked(store, shared=False), ExitStack() as running:
        datasets = {folder: read_manifest(folder) for folder in dataset_folders(store)}
        found = _hashes(query, datasets.values())
        chunks = {
            folder: held for folder in _sealed(store, "shards") if (held := _held(folder, found, query)).any_there
        }
        present = np.unique(np.concatenate([found[:0], *(held.hashes for held in chunks.values())]))
        plan, replaced = _planned(store, query, present, chunks, datasets)
        for name in _users(store, {folder.name for folder in chunks}, datasets):
            running.enter_context(locked(store / "runs" / name / "lock", "refuse"))
        if not dry_run:
            _purge(store, plan, query, replaced, list(chunks))
        return plan


def _corpus_paths(chunks: dict[Path, "_Held"], datasets: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Files of the corpus and how many of the documents stand in each; the datasets may read one file in many ways."""
    held = {folder.name: held for folder, held in chunks.items()}
    files: dict[str, int] = {}
    for manifest in datasets:
        counts: Counter[str] = Counter()
        for entry in (entry for entry in manifest["chunks"] if entry["key"] in held):
            counts.update(entry["spans"][number]["path"] for number in held[entry["key"]].spans(entry["spans"]))
        files = {path: max(counts[path], files.get(path, 0)) for path in {*files, *counts}}
    return dict(sorted(files.items()))


class _Held:
    """What a chunk holds of a document."""

    def __init__(self, hashes: _Hashes, positions: npt.NDArray[np.int64], quarantined: list[int]) -> None:
        self.hashes, self._positions, self._quarantined = hashes, positions, quarantined

    @property
    def in_quarantine(self) -> bool:
        return bool(self._quarantined)

    def spans(self, spans: list[dict[str, Any]]) -> list[int]:
        """The number of the span that each of them stands in."""
        ends = np.cumsum([span["documents"] for span in spans])
        return [*np.searchsorted(ends, self._positions, side="right").tolist(), *self._quarantined]

    @property
    def any_there(self) -> bool:
        return bool(len(self.hashes)) or self.in_quarantine


def _sealed(store: Path, kind: str) -> Iterator[Path]:
    return (path.parent for path in sorted((store / kind).glob(f"[!.]*/{MANIFEST}")))


def _held(chunk: Path, wanted: _Hashes, query: DocumentQuery) -> _Held:
    """Documents of the chunk whose ids are still there."""
    found, positions = [wanted[:0]], [np.empty(0, np.int64)]
    for split in SPLITS:
        shard = Shard(shard_path(chunk, split))
        rows = isin_sorted(shard.hashes, wanted) & (np.diff(shard.offsets) > 1)
        found.append(shard.hashes[rows])
        positions.append(shard.positions[rows])
    quarantined = [row["span"] for row in read_quarantine(chunk) if query.is_in(row["content"])]
    return _Held(np.unique(np.concatenate(found)), np.concatenate(positions), quarantined)


def _hashes(query: DocumentQuery, manifests: Iterable[dict[str, Any]]) -> _Hashes:
    """All that may name one of the documents in one of the datasets, sorted."""
    cuts = [query.cut(manifest["corpus"]) for manifest in manifests] or [query.cut({})]
    return np.unique(np.concatenate([cut.hashes for cut in cuts]))


def _planned(
    store: Path,
    query: DocumentQuery,
    present: _Hashes,
    chunks: dict[Path, _Held],
    datasets: dict[Path, dict[str, Any]],
) -> tuple[Forgotten, dict[Path, dict[str, Any]]]:
    """What is to be done, and the manifests that take the places of the datasets'."""
    match = best_match(query, dict.fromkeys(query.cuts, present), purged(store))
    if not chunks and not len(match.found):
        query.require_text()
    absent = match.missing if not any(held.in_quarantine for held in chunks.values()) else match.missing[:0]
    wanted = np.unique(np.concatenate([present, match.found, match.missing]))
    without = {folder: _without(manifest, store, wanted) for folder, manifest in datasets.items()}
    replaced = {folder: manifest for folder, manifest in without.items() if manifest is not None}
    seen = seen_by(store, query)
    runs = sorted(set(seen.names("run")))
    keys = {folder.name for folder in chunks}
    plan = Forgotten(
        documents=[f"{value:016x}" for value in wanted.tolist()],
        absent=[f"{value:016x}" for value in absent.tolist()],
        chunks=sorted(keys),
        datasets={folder.name: manifest["id"] if manifest else "" for folder, manifest in replaced.items()},
        runs=runs,
        versions=sorted(set(seen.names("version"))),
        files=[f"runs/{run}/{name}" for run in runs for name in _WRITTEN if (store / "runs" / run / name).exists()],
        corpus_paths=_corpus_paths(chunks, datasets.values()),
    )
    return plan, replaced


def _without(manifest: dict[str, Any], store: Path, wanted: _Hashes) -> dict[str, Any] | None:
    """The dataset's manifest without some documents: None if it kept none of them, {} if a split would be empty."""
    entries, left_out = deepcopy(manifest["chunks"]), deepcopy(manifest["ledger"]["dropped"])
    before = left_out.get("excluded", {"documents": 0})["documents"]
    for entry in entries:
        for split in SPLITS:
            shard = Shard(shard_path(store / "shards" / entry["key"], split))
            earlier = np.zeros(len(shard), np.bool_)
            earlier[entry[split]["dropped"]] = True
            new = isin_sorted(shard.hashes, wanted)
            if (new & ~earlier).any():
                filter_rows(entry[split], shard, {"": earlier, "excluded": new}, left_out)
    left_out.pop("", None)
    if left_out.get("excluded", {"documents": 0})["documents"] == before:
        return None
    splits = totals(entries)
    if not all(splits[split]["documents"] for split in SPLITS):
        return {}
    about = {"id": dataset_id(entries, manifest["tokenizer_id"]), "splits": splits, "chunks": entries}
    return {**manifest, **about, "ledger": {**manifest["ledger"], "dropped": left_out}}


def _users(store: Path, chunks: set[str], datasets: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Runs of datasets that have one of the chunks."""
    using = {path.name for path, content in datasets.items() if chunks & {entry["key"] for entry in content["chunks"]}}
    for folder in run_folders(store):
        if Run.open(folder).identity["dataset_id"] in using:
            yield folder.name


def _purge(
    store: Path,
    plan: Forgotten,
    query: DocumentQuery,
    replaced: dict[Path, dict[str, Any]],
    chunks: list[Path],
) -> None:
    _remember(store, plan)
    wanted = np.array(sorted(int(name, 16) for name in plan.documents), np.uint64)
    for folder, without in replaced.items():
        if without:
            write_dataset_manifest(folder.with_name(without["id"]), without)
        remove(folder)
    for chunk in chunks:
        _purge_chunk(chunk, wanted, query)
    for name in plan.files:
        remove(store / name) if (store / name).is_dir() else (store / name).unlink(missing_ok=True)


def _remember(store: Path, plan: Forgotten) -> None:
    """Append the event, unless nothing of it is new: a second call then only finishes the first."""
    known = {f"{value:016x}" for value in forgotten_hashes(store).tolist()}
    if set(plan.documents) <= known and not (plan.datasets or plan.chunks):
        return
    event = {
        "time": clock.iso_timestamp(),
        **plan.model_dump(include={"documents", "absent", "chunks", "datasets", "runs", "versions"}),
    }
    append_line(store / FORGOTTEN, event)


def _purge_chunk(folder: Path, wanted: _Hashes, query: DocumentQuery) -> None:
    """Put the chunk without the document's ids and pieces in its place."""
    about = content_of(verify_artifact(folder))
    with write_artifact(folder, lambda: about, replaces=True) as new:
        for split in SPLITS:
            about["splits"][split]["tokens"] = _purge_shard(shard_path(folder, split), shard_path(new, split), wanted)
        rows = read_quarantine(folder)
        pieces = [row | ({"content": b""} if query.is_in(row["content"]) else {}) for row in rows]
        write_quarantine(new / QUARANTINE, pieces)


def _purge_shard(old: Path, new: Path, wanted: _Hashes) -> int:
    """Tokens that are left."""
    shard = Shard(old)
    tokens, lengths = blanked(shard.tokens, np.diff(shard.offsets), isin_sorted(shard.hashes, wanted))
    write_shard(
        new,
        tokens,
        lengths,
        shard.text_bytes,
        shard.positions,
        shard.hashes,
        tokenizer_id=shard.metadata["tokenizer_id"],
        eos_id=int(shard.metadata["eos_id"]),
    )
    return len(tokens)
