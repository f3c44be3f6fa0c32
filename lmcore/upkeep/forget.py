"""Remove a document from a store: from shards, datasets, quarantine, and from what models wrote after reading it.

First the event is written to forgotten.jsonl. From then on no dataset that is made here holds the document, even if the
corpus does (dataset/filters.py). Then each dataset that holds it is replaced by the same one without it, and the ids of
the document are removed from the shards. Rows keep their positions, so nothing is encoded again, and datasets that had
filtered it out are unchanged. Each step leaves a complete store, and the same command finishes what a kill interrupted.

Weights cannot forget: the runs and versions that saw the document are listed, and stay.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmcore import clock
from lmcore.corpus.document_hashes import FORGOTTEN, Hashes, forgotten_hashes, isin_sorted
from lmcore.corpus.document_query import DocumentQuery
from lmcore.dataset.filters import filter_rows
from lmcore.dataset.manifest import dataset_id, text_ranges, totals, write_dataset_manifest
from lmcore.dataset.shards import SPLITS, Shard, blanked, read_quarantine, shard_path, write_quarantine, write_shard
from lmcore.runs.run import Run, run_folders
from lmcore.store.artifacts import read_manifest, verify_artifact, write_artifact
from lmcore.store.files import remove
from lmcore.store.json_files import append_line
from lmcore.store.layout import prepare_store
from lmcore.store.locks import locked, store_locked
from lmcore.store.outputs import Output
from lmcore.upkeep.seen_by import artifact_folders, best_match, purged, seen_by

_WRITTEN = ("samples.jsonl", "report.md", "report.json", "report.png", "tensorboard")
"""Files of a run that may repeat a document word for word."""


class Forgotten(Output):
    """What was removed, or would be on a dry run."""

    documents: list[str]
    """Hashes of the documents, found or not. No dataset made here from now on holds one of them."""
    absent: list[str]
    """Those that were never in this store."""
    chunks: list[str]
    """Keys of chunks that held one, in a shard or in quarantine."""
    datasets: dict[str, str]
    """Datasets that held one -> the same without it; empty where a split would be empty."""
    runs: list[str]
    """Runs that were trained or validated on one, or began with weights that were. Their weights do not change."""
    versions: list[str]
    """Versions, likewise."""
    files: list[str]
    """Files of runs that are removed: what a model wrote may repeat what it read."""
    corpus_paths: dict[str, int]
    """Files of the corpus -> how many of the documents are in each, until its owner deletes them."""

    @property
    def summary(self) -> str:
        """A line: how many of the documents were found."""
        found = len(self.documents) - len(self.absent)
        return f"found {found:,} of {len(self.documents):,} documents"

    def rows(self, dry_run: bool = False) -> list[dict[str, str]]:
        """A table of what held the documents, what has seen them, and where they came from."""
        would = "would be" if dry_run else "is"
        once = f"It {would} left out from now on"
        seen = "has seen it: its weights cannot forget. Train again without it, from new weights"
        came = "holds {} of the documents: delete them there too. This store leaves them out in any case"
        replaced = {name: to or "no dataset: it held nothing else" for name, to in self.datasets.items()}
        parts = [
            *((name, f"was not found in this store. {once}") for name in self.absent),
            *((f"shards/{name}", f"held it, and {would} written again without it") for name in self.chunks),
            *((f"datasets/{name}", f"{would} replaced by {to}") for name, to in replaced.items()),
            *((name, f"may repeat it, and {would} removed") for name in self.files),
            *((name, seen) for name in (*self.runs, *self.versions)),
            *((path, came.format(f"{count:,}")) for path, count in self.corpus_paths.items()),
        ]
        return [{"what": what, "about it": about} for what, about in parts]


class _Held(NamedTuple):
    """The documents that a chunk holds."""

    hashes: Hashes
    positions: npt.NDArray[np.int64]
    quarantined: list[int]
    """Text ranges of pieces in quarantine."""

    def ranges(self, spans: list[dict[str, Any]]) -> list[int]:
        """The number of the text range of each document."""
        ends = np.cumsum([span["documents"] for span in spans])
        return [*np.searchsorted(ends, self.positions, side="right").tolist(), *self.quarantined]


def forget(store: Path, document: str, dry_run: bool = False) -> Forgotten:
    """Remove documents, given as ``seen-by`` takes them: a hash, or a file.

    Raises RunError while a run that uses one is running or text is tokenized, and StoreError when a run does not say
    what it was trained on.
    """
    query = DocumentQuery(document)
    store = prepare_store(store, creates=False)  # also removes stale temporary files, which may hold the text
    with store_locked(store, shared=False), ExitStack() as running:
        datasets = {folder: read_manifest(folder) for folder in artifact_folders(store, "datasets")}
        cuts = [query.cut(manifest["corpus"]) for manifest in datasets.values()] or [query.cut({})]
        wanted = np.unique(np.concatenate([cut.hashes for cut in cuts]))
        held = {folder: _held(folder, wanted, query) for folder in artifact_folders(store, "shards")}
        chunks = {folder: found for folder, found in held.items() if len(found.hashes) or found.quarantined}
        plan, replaced = _planned(store, query, chunks, datasets)
        for name in _users(store, plan.chunks, datasets):
            running.enter_context(locked(store / "runs" / name / "lock", "refuse"))
        if not dry_run:
            _purge(store, plan, query, replaced, list(chunks))
        return plan


def _held(chunk: Path, wanted: Hashes, query: DocumentQuery) -> _Held:
    """The wanted documents whose ids are still in the chunk."""
    found, positions = [wanted[:0]], [np.empty(0, np.int64)]
    for split in SPLITS:
        shard = Shard(shard_path(chunk, split))
        rows = isin_sorted(shard.hashes, wanted) & (np.diff(shard.offsets) > 1)
        found.append(shard.hashes[rows])
        positions.append(shard.positions[rows])
    quarantined = [row["span"] for row in read_quarantine(chunk) if query.is_in(row["content"])]
    return _Held(np.unique(np.concatenate(found)), np.concatenate(positions), quarantined)


def _planned(
    store: Path, query: DocumentQuery, chunks: dict[Path, _Held], datasets: dict[Path, dict[str, Any]]
) -> tuple[Forgotten, dict[Path, dict[str, Any]]]:
    """The plan, and for each dataset that changes its new manifest."""
    present = np.unique(np.concatenate([np.empty(0, np.uint64), *(held.hashes for held in chunks.values())]))
    match = best_match(query, dict.fromkeys(query.cuts, present), purged(store))
    if not chunks and not len(match.found):
        query.require_text()
    absent = [] if any(held.quarantined for held in chunks.values()) else match.missing.tolist()
    wanted = np.unique(np.concatenate([present, match.found, match.missing]))
    without = {folder: _without(manifest, store, wanted) for folder, manifest in datasets.items()}
    replaced = {folder: manifest for folder, manifest in without.items() if manifest is not None}
    seen = seen_by(store, query)
    runs = sorted(set(seen.names("run")))
    plan = Forgotten(
        documents=[f"{value:016x}" for value in wanted.tolist()],
        absent=[f"{value:016x}" for value in absent],
        chunks=sorted(folder.name for folder in chunks),
        datasets={folder.name: manifest["id"] if manifest else "" for folder, manifest in replaced.items()},
        runs=runs,
        versions=sorted(set(seen.names("version"))),
        files=[f"runs/{run}/{name}" for run in runs for name in _WRITTEN if (store / "runs" / run / name).exists()],
        corpus_paths=_corpus_paths({folder.name: held for folder, held in chunks.items()}, datasets.values()),
    )
    return plan, replaced


def _corpus_paths(chunks: dict[str, _Held], datasets: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Files of the corpus, and how many of the documents are in each. Datasets may cut one file in different ways."""
    files: Counter[str] = Counter()
    for manifest in datasets:
        counts: Counter[str] = Counter()
        for key, spans in text_ranges(manifest):
            if key in chunks:
                counts.update(spans[number]["path"] for number in chunks[key].ranges(spans))
        files |= counts  # the greater count of each
    return dict(sorted(files.items()))


def _without(manifest: dict[str, Any], store: Path, wanted: Hashes) -> dict[str, Any] | None:
    """The dataset's manifest without some documents: None if it holds none of them, {} if a split would be empty."""
    entries, left_out = deepcopy(manifest["chunks"]), deepcopy(manifest["ledger"]["dropped"])
    for entry in entries:
        for split in SPLITS:
            shard = Shard.of_chunk(store, entry, split)
            earlier = ~shard.all_but(entry[split]["dropped"])
            new = isin_sorted(shard.hashes, wanted)
            if (new & ~earlier).any():
                filter_rows(entry[split], shard, {"": earlier, "excluded": new}, left_out)
    left_out.pop("", None)
    if left_out == manifest["ledger"]["dropped"]:
        return None
    splits = totals(entries)
    if not all(splits[split]["documents"] for split in SPLITS):
        return {}
    about = {"id": dataset_id(entries, manifest["tokenizer_id"]), "splits": splits, "chunks": entries}
    return {**manifest, **about, "ledger": {**manifest["ledger"], "dropped": left_out}}


def _users(store: Path, chunks: list[str], datasets: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Names of runs whose dataset has one of the chunks."""
    keys = {path.name: {entry["key"] for entry in manifest["chunks"]} for path, manifest in datasets.items()}
    using = {name for name, held in keys.items() if held & set(chunks)}
    for folder in run_folders(store):
        if Run.open(folder).identity["dataset_id"] in using:
            yield folder.name


def _purge(
    store: Path, plan: Forgotten, query: DocumentQuery, replaced: dict[Path, dict[str, Any]], chunks: list[Path]
) -> None:
    """Carry out the plan. The event is written first. Where all of it is known, this call finishes an earlier one."""
    known = {f"{value:016x}" for value in forgotten_hashes(store).tolist()}
    if plan.datasets or plan.chunks or not set(plan.documents) <= known:
        event = plan.model_dump(include={"documents", "absent", "chunks", "datasets", "runs", "versions"})
        append_line(store / FORGOTTEN, {"time": clock.iso_timestamp(), **event})
    wanted = np.array(sorted(int(name, 16) for name in plan.documents), np.uint64)
    for folder, without in replaced.items():
        if without:
            write_dataset_manifest(folder.with_name(without["id"]), without)
        remove(folder)
    for chunk in chunks:
        _purge_chunk(chunk, wanted, query)
    for name in plan.files:
        remove(store / name) if (store / name).is_dir() else (store / name).unlink(missing_ok=True)


def _purge_chunk(folder: Path, wanted: Hashes, query: DocumentQuery) -> None:
    """Replace the chunk by one without the ids and pieces of the documents."""
    about = verify_artifact(folder)
    with write_artifact(folder, lambda: about, replaces=True) as new:
        for split in SPLITS:
            about["splits"][split]["tokens"] = _purge_shard(shard_path(folder, split), shard_path(new, split), wanted)
        rows = read_quarantine(folder)
        pieces = [row | ({"content": b""} if query.is_in(row["content"]) else {}) for row in rows]
        write_quarantine(new, pieces)


def _purge_shard(old: Path, new: Path, wanted: Hashes) -> int:
    """The number of tokens that are left."""
    shard = Shard(old)
    tokens, lengths = blanked(shard.tokens, np.diff(shard.offsets), isin_sorted(shard.hashes, wanted))
    about = {"tokenizer_id": shard.metadata["tokenizer_id"], "eos_id": int(shard.metadata["eos_id"])}
    write_shard(new, tokens, lengths, shard.text_bytes, shard.positions, shard.hashes, **about)
    return len(tokens)
