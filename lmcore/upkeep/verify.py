"""The check that a version and all that it was made from, down to the corpus, are those of its receipt."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from lmcore.corpus.document_hashes import forgotten_events
from lmcore.corpus.remote import hash_stored
from lmcore.dataset.audit import problems
from lmcore.dataset.filters import hashes
from lmcore.dataset.shards import SPLITS
from lmcore.errors import LMError
from lmcore.registry.receipt import Receipt, manifest_hash, origin_path
from lmcore.registry.versions import Version
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.run import Run
from lmcore.settings.section import differences
from lmcore.store.artifacts import MANIFEST, read_manifest, verify_artifact
from lmcore.store.files import hash_file

_SHOWN = 3
"""Lines shown about one kind of difference; the rest is counted."""


def check_receipt(target: Version) -> Iterator[str]:
    """A line for each thing that differs from the receipt. Reads all bytes, those of the corpus too."""
    try:
        manifest, receipt = verify_artifact(target.folder), target.receipt()
    except LMError as error:
        yield str(error)
        return
    store, run = target.store, f"runs/{receipt['run']}"
    for name, digest in receipt["export"].items():
        if name != "README.md" and manifest["files"].get(name, {}).get("blake3") != digest:
            yield f"{name} is not the file that run {receipt['run']} exported"
    files = (_check_file(path, digest) for path, digest in receipt["corpus"]["files"].items())
    yield from _first_lines([line for lines in files for line in lines])
    artifacts = {f"tokenizers/{receipt['tokenizer']['id']}": receipt["tokenizer"]["seal"], **receipt["checkpoints"]}
    for path, seal in artifacts.items():
        yield from _guarded(path, _check_artifact(store, path, seal))
    yield from _check_dataset(store, receipt)
    yield from _guarded(run, _check_run(store, run, receipt))
    if receipt["origin"]:
        yield from _guarded("initial model", _check_origin(store, receipt["origin"]))


def _guarded(what: str, lines: Iterator[str]) -> Iterator[str]:
    """The lines, and one about an error that ends them."""
    try:
        yield from lines
    except (LMError, OSError) as error:
        yield f"{what}: {error}"


def _check_file(path: str, digest: str) -> Iterator[str]:
    try:
        if (found := hash_stored(path)) != digest:
            yield f"corpus: {path} has changed: was {digest}, is {found}"
    except (OSError, LMError) as error:
        yield f"corpus: {path} cannot be read: {error}"


def _check_artifact(store: Path, path: str, seal: str, reads: bool = True) -> Iterator[str]:
    if reads:
        verify_artifact(store / path)
    if (found := manifest_hash(store / path)) != seal:
        yield f"{path} was replaced: the hash of its manifest was {seal}, is {found}"


def _check_dataset(store: Path, receipt: Receipt) -> Iterator[str]:
    name, chunks = receipt["dataset"]["id"], receipt["dataset"]["chunks"]
    dataset = store / "datasets" / name
    if not (dataset / MANIFEST).exists():
        yield _why_gone(store, name)
        return
    yield from (f"dataset {name}: {problem}" for _, problem in problems(dataset))
    rewritten = {key for event in forgotten_events(store) for key in event["chunks"]}
    paths = {f"shards/{key}": seal for key, seal in chunks.items() if key not in rewritten}
    checks = (_guarded(path, _check_artifact(store, path, seal, reads=False)) for path, seal in paths.items())
    yield from _first_lines([line for lines in checks for line in lines])
    excluded = np.array([int(name, 16) for name in receipt["corpus"]["excluded"]], np.uint64)
    with suppress(LMError):  # ``problems`` has reported it
        held = hashes(read_manifest(dataset)["chunks"], store, *SPLITS)
        for value in excluded[np.isin(excluded, held)]:
            yield f"dataset {name} holds document {value:016x}, which the receipt says is excluded"


def _why_gone(store: Path, dataset: str) -> str:
    for event in forgotten_events(store):
        if dataset in event["datasets"]:
            return (
                f"dataset {dataset} was removed: document {', '.join(event['documents'])} was forgotten at "
                f"{event['time']}. The weights have seen the document. Without it the dataset is "
                f"{event['datasets'][dataset] or 'empty'}"
            )
    return f"dataset {dataset} is missing"


def _check_run(store: Path, run: str, receipt: Receipt) -> Iterator[str]:
    for name, digest in receipt["results"].items():
        if hash_file(store / run / name) != digest:
            yield f"{run}/{name} has changed"
    for name, old, new in differences(receipt["record"]["identity"], Run.open(store / run).identity):
        yield f"{run}: {name} was {old!r}, is {new!r}"


def _check_origin(store: Path, origin: dict[str, str]) -> Iterator[str]:
    found = InitialModel.find(origin_path(store, origin))
    found.verify()
    if found.fingerprint() != origin["fingerprint"]:
        yield f"{origin['path']}, the initial model, has other weights than before"


def _first_lines(lines: list[str]) -> list[str]:
    rest = [f"and {len(lines) - _SHOWN:,} more like it"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + rest
