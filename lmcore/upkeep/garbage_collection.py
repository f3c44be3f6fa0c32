"""Garbage collection of a store by mark and sweep.

The roots are all versions of all models (``prune`` removes versions), the newest runs, locked runs, and everything
younger than a grace time. A version or run keeps its dataset, chunks, tokenizer and the checkpoint it began with; of
the run that made that checkpoint only what opens it is kept. Runs are removed before datasets, and datasets before
chunks and tokenizers, so a kill leaves a complete store. Nothing is removed while text is tokenized.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcore import clock
from lmcore.corpus.document_hashes import current_dataset_id
from lmcore.errors import LMError, RunError
from lmcore.registry.versions import all_versions
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import remove, remove_stale_temp
from lmcore.store.layout import path_in_store, prepare_store
from lmcore.store.locks import locked, store_locked
from lmcore.store.outputs import Output

_KINDS = ("datasets", "shards", "tokenizers")
_CONFIG, _LOCK = "config.json", "lock"
_CHECKPOINT = "(runs/[^/]+)/(checkpoints/[^/]+|model)"


class Garbage(Output):
    """What was removed, or would be on a dry run."""

    removed: dict[str, int]
    """Path inside the store -> bytes of disk that are freed. A file that a version links to frees none."""

    @property
    def bytes(self) -> int:
        return sum(self.removed.values())

    def rows(self) -> list[dict[str, str]]:
        """As a table."""
        return [{"bytes": f"{size:,}", "path": path} for path, size in self.removed.items()]


@dataclass
class _Reached:
    """Paths inside the store that are kept, with all they hold."""

    store: Path
    paths: set[str] = field(default_factory=set)
    pinned: dict[str, set[str]] = field(default_factory=dict)
    """Runs of which only the checkpoints that others began with are kept -> these checkpoints."""

    def version(self, receipt: dict[str, Any]) -> None:
        self.paths.add(f"runs/{receipt['run']}")
        self.paths |= {f"shards/{key}" for key in receipt["dataset"]["chunks"]}
        self._trained_on(receipt["record"].get("datasets", [receipt["dataset"]["id"]]))
        self.paths.add(f"tokenizers/{receipt['tokenizer']['id']}")
        self._origin((receipt["origin"] or {}).get("path", ""))

    def run(self, folder: Path) -> None:
        self.paths.add(f"runs/{folder.name}")
        if (folder / _CONFIG).exists():
            run = Run.open(folder)
            self._trained_on(run.record.get("datasets", [run.identity["dataset_id"]]))
            self.paths.add(f"tokenizers/{run.identity['tokenizer_id']}")
            self._origin(path_in_store(self.store, Path(run.config.train.init_from)))

    def dataset(self, name: str) -> None:
        self.paths.add(f"datasets/{name}")
        with suppress(LMError):
            manifest = read_manifest(self.store / "datasets" / name)
            self.paths |= {f"shards/{entry['key']}" for entry in manifest["chunks"]}
            self.paths.add(f"tokenizers/{manifest['tokenizer_id']}")

    def _trained_on(self, datasets: list[str]) -> None:
        """The dataset of a run; of an older version of this program, whose runs list no documents, the lineage."""
        for name in datasets:
            self.dataset(name)
            self.dataset(current_dataset_id(self.store, name))

    def _origin(self, path: str) -> None:
        """Keep a checkpoint or export of a run, with the run's settings and tokenizer, which open it."""
        if found := re.fullmatch(_CHECKPOINT, path):
            self.pinned.setdefault(found[1], set()).add(found[2])
            if (self.store / found[1] / _CONFIG).exists():
                tokenizer = Run.open(self.store / found[1]).identity["tokenizer_id"]
                self.paths.add(f"tokenizers/{tokenizer}")


def collect(store: Path, keep_runs: int = 3, grace_seconds: float = 86_400, dry_run: bool = False) -> Garbage:
    """Remove what nothing needs. The newest ``keep_runs`` runs, by their last start, are kept.

    Raises RunError while text is tokenized, RegistryError when a version's receipt cannot be read, and StoreError when
    a run that is kept does not say what it needs.
    """
    store = prepare_store(store, creates=False)
    with store_locked(store, shared=False), ExitStack() as held:
        for run in _folders(store, "runs"):
            remove_stale_temp(run, run / "checkpoints")
        reached = _mark(store, keep_runs, clock.now() - grace_seconds, held)
        doomed = list(_doomed(store, reached))
        removed = {path.relative_to(store).as_posix(): _bytes(path) for path in doomed}
        for path in [] if dry_run else doomed:
            remove(path) if path.is_dir() else path.unlink(missing_ok=True)
        return Garbage(removed=removed)


def _mark(store: Path, keep_runs: int, oldest: float, held: ExitStack) -> _Reached:
    """Everything that is kept. The locks of the other runs are held from then on, so that none of them starts."""
    reached = _Reached(store)
    for version in all_versions(store):
        reached.version(version.receipt())
    runs = sorted(_folders(store, "runs"), key=_last_use, reverse=True)
    for number, run in enumerate(runs):
        if number < keep_runs or _last_use(run) > oldest or _is_running(run, held, reached):
            reached.run(run)
    for kind in _KINDS:
        for folder in _folders(store, kind):
            if _last_use(folder) > oldest:
                reached.paths.add(f"{kind}/{folder.name}")
                if kind == "datasets":
                    reached.dataset(folder.name)
    return reached


def _is_running(run: Path, held: ExitStack, reached: _Reached) -> bool:
    if f"runs/{run.name}" in reached.paths:
        return False  # its version keeps it, and all that it needs
    try:
        held.enter_context(locked(run / _LOCK, "refuse"))
    except RunError:
        return True
    return False


def _folders(store: Path, kind: str) -> list[Path]:
    return [path for path in sorted((store / kind).glob("[!.]*")) if path.is_dir()]


def _last_use(folder: Path) -> float:
    """When a run was last started, or an artifact last made or found; of another folder its own time."""
    for name in (_CONFIG, MANIFEST):
        with suppress(FileNotFoundError):
            return (folder / name).stat().st_mtime
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0


def _doomed(store: Path, reached: _Reached) -> Iterator[Path]:
    """What is removed, in that order."""
    for kind in ("runs", *_KINDS):
        for folder in _folders(store, kind):
            name = f"{kind}/{folder.name}"
            if name in reached.pinned and name not in reached.paths:
                yield from _unpinned(folder, reached.pinned[name])
            elif name not in reached.paths:
                yield folder


def _unpinned(run: Path, pinned: set[str]) -> Iterator[Path]:
    for path in sorted(run.iterdir()):
        if path.name == "checkpoints":
            yield from (each for each in sorted(path.iterdir()) if f"checkpoints/{each.name}" not in pinned)
        elif path.name not in (_CONFIG, _LOCK, SEEN_DOCUMENTS) and path.name not in pinned:
            yield path


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
