"""The receipt of a version: all that it was made from, and the check that it is all unchanged.

A receipt is JSON: the run's record (settings, identity, tokenizer, shape), hashes of all corpus files, of the manifests
of chunks, tokenizer and checkpoints, and of the files of results and export, the gate's decision, and the program.
Paths inside the store are relative to it, so that a store can be moved. ``check_receipt`` hashes everything again;
``upkeep/replay.py`` trains again. No torch.

The hashes of corpus files and of the export are copies, not the hash of a manifest: another read of the corpus replaces
the manifest of the same dataset, and another model card the export of the same weights.
"""

import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from lmcore import clock
from lmcore.corpus.document_hashes import forgotten_events
from lmcore.corpus.remote import hash_stored
from lmcore.dataset.audit import problems
from lmcore.dataset.filters import hashes
from lmcore.dataset.shards import SPLITS
from lmcore.errors import LMError, StoreError
from lmcore.registry.versions import Version
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.run import Run, checkpoint_path
from lmcore.settings.section import differences
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, read_manifest, verify_artifact
from lmcore.store.files import DIGEST_BYTES, hash_file
from lmcore.store.json_files import read_object
from lmcore.store.layout import path_in_store

_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "pyarrow", "numpy")
_RESULTS = ("training.json", "evaluation.json", "metrics.jsonl")
_SHOWN = 3
"""Lines shown about one kind of difference; the rest is counted."""

Receipt = dict[str, Any]


def make_receipt(run: Run, target: Version, champion_before: str | None, decision: dict[str, Any]) -> Receipt:
    """The receipt of a finished run that becomes a version. Raises StoreError when a part of the run is missing."""
    training, evaluation = _result(run, "training.json"), _result(run, "evaluation.json")
    manifest = read_manifest(run.dataset_folder)
    keys = [entry["key"] for entry in manifest["chunks"]]
    return {
        "format_version": FORMAT_VERSION,
        "model": target.model,
        "version": target.id,
        "created": clock.iso_timestamp(),
        "champion_before": champion_before,
        "decision": decision,
        "run": run.folder.name,
        "record": run.record,
        "origin": _origin(run),
        "corpus": {
            "files": {row["path"]: row.get("blake3") for row in manifest["inputs"]},
            "excluded": manifest["corpus"].get("exclude_documents", []),
        },
        "dataset": {
            "id": manifest["id"],
            "splits": manifest["splits"],
            "left_out": manifest["ledger"]["dropped"],
            "chunks": {key: _manifest_hash(run.store / "shards" / key) for key in keys},
        },
        "tokenizer": {"id": run.identity["tokenizer_id"], "seal": _manifest_hash(run.tokenizer_folder)},
        "training": training,
        "evaluation": evaluation,
        "checkpoints": _checkpoints(run, training),
        "results": {name: hash_file(run.folder / name) for name in _RESULTS},
        "export": {name: file["blake3"] for name, file in read_manifest(run.folder / "model")["files"].items()},
        "program": program(),
    }


def program() -> dict[str, Any]:
    """The running code: a hash of lmcore, the commit of its git repository if it is in one, and the packages."""
    folder = Path(__file__).parents[1]
    digest = blake3()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    packages = {name: version(name) for name in _PACKAGES}
    machine = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    return {"lmcore": digest.hexdigest(DIGEST_BYTES), "commit": _commit(folder), **machine, "packages": packages}


def _commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def _result(run: Run, name: str) -> dict[str, Any]:
    try:
        return read_object(run.folder / name)
    except StoreError as error:
        raise StoreError(f"{error}. The run is not finished: run the pipeline again") from None


def _manifest_hash(folder: Path) -> str:
    """A hash of the manifest, which has the hash of each file: it names the content of an artifact."""
    return hash_file(folder / MANIFEST)


def _origin(run: Run) -> dict[str, str] | None:
    """The model that training began with; None for new weights."""
    if not (name := run.config.train.init_from):
        return None
    path = Path(name).expanduser()
    where = path_in_store(run.store, path.absolute()) if path.exists() else name
    return {"path": where, "fingerprint": run.identity["first_weights"]}


def _checkpoints(run: Run, training: dict[str, Any]) -> dict[str, str]:
    """The checkpoint that was exported, and the stable checkpoint to continue from, if there is one."""
    paths = [checkpoint_path(run.checkpoints, training["step"])]
    paths += [run.checkpoints / Path(training["trunk"]).name] if training["trunk"] else []
    return {path_in_store(run.store, path): _manifest_hash(path) for path in paths}


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
    if (found := _manifest_hash(store / path)) != seal:
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


def origin_path(store: Path, origin: dict[str, str]) -> str:
    """The value of train.init_from that leads to the initial model in the store as it lies now."""
    here = store / origin["path"]
    return str(here) if here.exists() else origin["path"]


def program_differences(receipt: Receipt) -> list[str]:
    """How the running program differs from the one that made the version. This is no damage."""
    return [f"{name} was {old}, is {new}" for name, old, new in differences(receipt["program"], program())]


def diff(one: Version, other: Version) -> list[tuple[str, Any, Any]]:
    """(field, value of one, value of the other) where two versions differ: settings, data, losses, ids, program."""
    return list(differences(_compared(one.receipt()), _compared(other.receipt())))


def _compared(receipt: Receipt) -> dict[str, Any]:
    figures = ("step", "tokens", "train_loss", "validation_loss", "parameters", "weights", "skipped_steps")
    scores = ("nats_per_token", "bits_per_byte", "perplexity", "documents", "text_bytes")
    files = receipt["corpus"]["files"]
    return {
        "config": {name: part for name, part in receipt["record"]["config"].items() if name != "store"},
        "corpus": {"files": len(files), "bytes hashed as": _hash_of(files), "excluded": receipt["corpus"]["excluded"]},
        "dataset": {"id": receipt["dataset"]["id"], **receipt["dataset"]["splits"]},
        "tokenizer": receipt["tokenizer"]["id"],
        "training": {name: receipt["training"][name] for name in figures},
        "evaluation": {name: receipt["evaluation"][name] for name in scores},
        "origin": receipt["origin"],
        "promoted": receipt["decision"].get("promoted"),
        "program": receipt["program"],
    }


def _hash_of(files: dict[str, str]) -> str:
    return blake3(json.dumps(sorted(map(str, files.values()))).encode()).hexdigest(8)


def _first_lines(lines: list[str]) -> list[str]:
    rest = [f"and {len(lines) - _SHOWN:,} more like it"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + rest
