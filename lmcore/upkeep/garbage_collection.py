"""Garbage collection of a store by mark and sweep.

The roots are all versions of all models (``prune`` removes versions), the newest runs, locked runs, and everything
younger than a grace time. A version or run keeps its dataset, chunks, tokenizer and the checkpoint it began with; of
the run that made that checkpoint only what opens it is kept. Runs are removed before datasets, and datasets before
chunks and tokenizers, so a kill leaves a complete store. Nothing is removed while text is tokenized.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path, PurePath

from lmcore import clock
from lmcore.corpus.document_hashes import current_dataset_id
from lmcore.errors import LMError, RunError
from lmcore.registry.versions import all_versions
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import remove, remove_stale_temp
from lmcore.store.layout import prepare_store
from lmcore.store.locks import locked, store_locked
from lmcore.store.outputs import Output
from lmcore.upkeep.seen_by import Training

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


def collect(store: Path, keep_runs: int = 3, grace_seconds: float = 86_400, dry_run: bool = False) -> Garbage:
    """Remove what nothing needs. The newest ``keep_runs`` runs, by their last start, are kept.

    Raises RunError while text is tokenized, RegistryError when a version's receipt cannot be read, and StoreError when
    a run that is kept does not say what it needs.
    """
    store = prepare_store(store, creates=False)
    with store_locked(store, shared=False), ExitStack() as held:
        for run in _folders(store, "runs"):
            remove_stale_temp(run, run / "checkpoints")
        doomed = _unneeded(store, _mark(store, keep_runs, clock.now() - grace_seconds, held))
        removed = {path.relative_to(store).as_posix(): _bytes(path) for path in doomed}
        for path in [] if dry_run else doomed:
            remove(path) if path.is_dir() else path.unlink(missing_ok=True)
        return Garbage(removed=removed)


def _mark(store: Path, keep_runs: int, oldest: float, held: ExitStack) -> set[str]:
    """The paths inside the store that are kept, with all they hold.

    The locks of the other runs are held from then on, so that none of them starts.
    """
    kept: set[str] = set()
    for version in all_versions(store):
        receipt = version.receipt()
        kept |= {f"runs/{receipt['run']}", *(f"shards/{key}" for key in receipt["dataset"]["chunks"])}
        kept.update(_needed(store, Training.from_version(version)))
    for number, run in enumerate(sorted(_folders(store, "runs"), key=_last_use, reverse=True)):
        name = f"runs/{run.name}"
        if number < keep_runs or _last_use(run) > oldest or (name not in kept and _is_running(run, held)):
            kept.add(name)
            if (run / _CONFIG).exists():
                kept.update(_needed(store, Training.from_run(run)))
    for kind in _KINDS:
        for folder in _folders(store, kind):
            if _last_use(folder) > oldest:
                kept.update(_dataset(store, folder.name) if kind == "datasets" else [f"{kind}/{folder.name}"])
    return kept


def _needed(store: Path, training: Training) -> Iterator[str]:
    """What a run or a version needs: datasets, tokenizer, and a checkpoint or export with what opens it."""
    yield f"tokenizers/{training.record['identity']['tokenizer_id']}"
    for name in training.datasets:
        yield from _dataset(store, name)
        yield from _dataset(store, current_dataset_id(store, name))
    if found := re.fullmatch(_CHECKPOINT, training.origin):
        yield training.origin
        yield from (f"{found[1]}/{name}" for name in (_CONFIG, _LOCK, SEEN_DOCUMENTS))
        if (store / found[1] / _CONFIG).exists():
            yield f"tokenizers/{Run.open(store / found[1]).identity['tokenizer_id']}"


def _dataset(store: Path, name: str) -> Iterator[str]:
    yield f"datasets/{name}"
    with suppress(LMError):
        manifest = read_manifest(store / "datasets" / name)
        yield from (f"shards/{entry['key']}" for entry in manifest["chunks"])
        yield f"tokenizers/{manifest['tokenizer_id']}"


def _is_running(run: Path, held: ExitStack) -> bool:
    try:
        held.enter_context(locked(run / _LOCK, "refuse"))
    except RunError:
        return True
    return False


def _folders(store: Path, kind: str) -> list[Path]:
    return [path for path in sorted((store / kind).glob("[!.]*")) if path.is_dir()]


def _last_use(folder: Path) -> float:
    """When a run was last started, or an artifact last made or found; of another folder its own time."""
    for path in (folder / _CONFIG, folder / MANIFEST, folder):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def _unneeded(store: Path, kept: set[str]) -> list[Path]:
    """What is removed, in that order. Of a folder that holds something kept, the rest."""
    above = {str(parent) for path in kept for parent in PurePath(path).parents}

    def inside(name: str) -> Iterator[Path]:
        if name in above and name not in kept:
            for path in sorted((store / name).iterdir()):
                yield from inside(f"{name}/{path.name}")
        elif name not in kept:
            yield store / name

    kinds = ("runs", *_KINDS)
    return [path for kind in kinds for folder in _folders(store, kind) for path in inside(f"{kind}/{folder.name}")]


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
