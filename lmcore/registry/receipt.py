"""What a model version was made from, down to the bytes of the corpus, and whether that is all still there.

A receipt is JSON: the run's record (settings, identity, tokenizer, shape), the hash of every corpus file and chunk, of
tokenizer, checkpoints, metrics and export, the gate's decision, and the program that did it. Paths inside the store
are relative to it, so that a store may be moved. ``check_receipt`` looks at all of it again and names what no longer
matches; weights are hashed, nothing is trained (replay.py does).

Nothing here needs torch.
"""

import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from lmcore import clock
from lmcore.corpus.exclusions import forgotten_events
from lmcore.corpus.remote import hash_stored
from lmcore.dataset.audit import problems
from lmcore.dataset.filters import hashes
from lmcore.dataset.shards import SPLITS
from lmcore.errors import LMError, StoreError
from lmcore.registry.versions import Version
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.run import Run
from lmcore.settings.section import differences
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, read_manifest, verify_artifact
from lmcore.store.files import DIGEST_BYTES, hash_file
from lmcore.store.layout import path_in_store
from lmcore.store.strict_json import from_json

_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "pyarrow", "numpy")
_RESULTS = ("training.json", "evaluation.json", "metrics.jsonl")
_SHOWN = 3
"""Files that are named in the line about each thing that no longer matches; of more, their number."""

Receipt = dict[str, Any]


def make_receipt(run: Run, target: Version, champion_before: str | None, decision: dict[str, Any]) -> Receipt:
    """The receipt of a finished run that becomes a version. Raises StoreError when something of it is missing."""
    record = from_json((run.folder / "config.json").read_bytes())
    training = _result(run.folder / "training.json")
    manifest = read_manifest(run.dataset_folder)
    return {
        "format_version": FORMAT_VERSION,
        "model": target.model,
        "version": target.id,
        "created": clock.iso_timestamp(),
        "champion_before": champion_before,
        "decision": decision,
        "run": run.folder.name,
        "record": record,
        "origin": _origin(run),
        "corpus": {
            "files": {row["path"]: row.get("blake3") for row in manifest["inputs"]},
            "excluded": manifest["corpus"].get("exclude_documents", []),
        },
        "dataset": {
            "id": manifest["id"],
            "splits": manifest["splits"],
            "left_out": manifest["ledger"]["dropped"],
            "chunks": {entry["key"]: _seal(run.store / "shards" / entry["key"]) for entry in manifest["chunks"]},
        },
        "tokenizer": {"id": run.identity["tokenizer_id"], "seal": _seal(run.tokenizer_folder)},
        "training": training,
        "evaluation": _result(run.folder / "evaluation.json"),
        "checkpoints": _checkpoints(run, training),
        "results": {name: hash_file(run.folder / name) for name in _RESULTS},
        "export": {name: file["blake3"] for name, file in read_manifest(run.folder / "model")["files"].items()},
        "program": program(),
    }


def program() -> dict[str, Any]:
    """The code that runs now, by its own bytes and, where it lies in one, the commit of its git repository."""
    folder = Path(__file__).parents[1]  # lmcore, with all its wings
    digest = blake3()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    packages = {name: version(name) for name in _PACKAGES}
    machine = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    return {"lmcore": digest.hexdigest(DIGEST_BYTES), "commit": _commit(folder), **machine, "packages": packages}


def _commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _result(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = from_json(path.read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(
            f"{path} is missing or damaged, so the run is not finished: {error}. Run the pipeline again"
        ) from None
    return content


def _seal(folder: Path) -> str:
    """Names the content of a sealed folder: its manifest has the hash of every file."""
    return hash_file(folder / MANIFEST)


def _origin(run: Run) -> dict[str, str] | None:
    """Where the first weights came from; None for new ones."""
    if not run.config.train.init_from:
        return None
    path = Path(run.config.train.init_from).expanduser()
    where = path_in_store(run.store, path.absolute()) if path.exists() else run.config.train.init_from
    return {"path": where, "fingerprint": run.identity["first_weights"]}


def _checkpoints(run: Run, training: dict[str, Any]) -> dict[str, str]:
    """The checkpoint that was exported, and the trunk to go on from, if there is one."""
    paths = [run.checkpoints / f"step-{training['step']:08d}"]
    paths += [run.checkpoints / Path(training["trunk"]).name] if training["trunk"] else []
    return {path_in_store(run.store, path): _seal(path) for path in paths}


# --- is it all still so? ---


def check_receipt(target: Version) -> Iterator[str]:
    """Every thing that no longer matches, a line each; reads every byte, those of the corpus too."""
    try:
        manifest = verify_artifact(target.folder)
        receipt = target.receipt()
    except LMError as error:
        yield str(error)
        return
    yield from _check_export(receipt, manifest)
    yield from _check_corpus(receipt["corpus"]["files"])
    yield from _check_sealed(target.store, {f"tokenizers/{receipt['tokenizer']['id']}": receipt["tokenizer"]["seal"]})
    yield from _check_dataset(target.store, receipt)
    yield from _check_sealed(target.store, receipt["checkpoints"])
    yield from _check_run(target.store / "runs" / receipt["run"], receipt)
    yield from _check_origin(target.store, receipt["origin"])


def _check_export(receipt: Receipt, manifest: dict[str, Any]) -> Iterator[str]:
    for name, digest in receipt["export"].items():
        if name != "README.md" and manifest["files"].get(name, {}).get("blake3") != digest:
            yield f"{name} is not the file that run {receipt['run']} exported"


def _check_corpus(files: dict[str, str]) -> Iterator[str]:
    changed = []
    for path, digest in files.items():
        try:
            found = hash_stored(path)
        except (OSError, LMError) as error:
            changed.append(f"{path} cannot be read: {error}")
            continue
        if found != digest:
            changed.append(f"{path} has changed: was {digest}, is {found}")
    yield from _few([f"corpus: {line}" for line in changed])


def _check_dataset(store: Path, receipt: Receipt) -> Iterator[str]:
    dataset = store / "datasets" / receipt["dataset"]["id"]
    if not (dataset / MANIFEST).exists():
        yield _why_gone(store, dataset.name)
        return
    yield from (f"dataset {dataset.name}: {problem}" for _, problem in problems(dataset))
    rewritten = {key for event in forgotten_events(store) for key in event["chunks"]}
    chunks = {f"shards/{key}": seal for key, seal in receipt["dataset"]["chunks"].items() if key not in rewritten}
    yield from _few(list(_check_sealed(store, chunks, reads=False)))
    excluded = np.array([int(name, 16) for name in receipt["corpus"]["excluded"]], np.uint64)
    try:
        held = hashes(read_manifest(dataset)["chunks"], store, *SPLITS)
    except LMError:
        return  # told above
    for value in excluded[np.isin(excluded, held)]:
        yield f"dataset {dataset.name} holds document {value:016x}, which the receipt says is excluded"


def _why_gone(store: Path, dataset: str) -> str:
    for event in forgotten_events(store):
        if dataset in event["datasets"]:
            return (
                f"dataset {dataset} is no more: document {', '.join(event['documents'])} was forgotten at "
                f"{event['time']}. The weights have seen it all the same. Without it the dataset is "
                f"{event['datasets'][dataset] or 'empty'}"
            )
    return f"dataset {dataset} is missing"


def _check_sealed(store: Path, seals: dict[str, str], reads: bool = True) -> Iterator[str]:
    for path, seal in seals.items():
        try:
            if reads:
                verify_artifact(store / path)
            if (found := _seal(store / path)) != seal:
                yield f"{path} is whole, but another one than it was: its seal was {seal}, is {found}"
        except (LMError, OSError) as error:
            yield f"{path}: {error}"


def _check_run(folder: Path, receipt: Receipt) -> Iterator[str]:
    try:
        for name in _RESULTS:
            if hash_file(folder / name) != receipt["results"][name]:
                yield f"runs/{folder.name}/{name} has changed"
        found = Run.open(folder).identity
    except (LMError, OSError) as error:
        yield f"run {folder.name}: {error}"
        return
    for name, old, new in differences(receipt["record"]["identity"], found):
        yield f"run {folder.name}: {name} was {old!r}, is {new!r}"


def _check_origin(store: Path, origin: dict[str, str] | None) -> Iterator[str]:
    if origin is None:
        return
    try:
        found = InitialModel.find(origin_path(store, origin))
        found.prove_whole()
        if found.fingerprint() != origin["fingerprint"]:
            yield f"{origin['path']}, which training began with, holds other weights than it did"
    except (LMError, OSError) as error:
        yield f"what training began with: {error}"


def origin_path(store: Path, origin: dict[str, str]) -> str:
    """What train.init_from is to be, now that the store lies at ``store``."""
    here = store / origin["path"]
    return str(here) if here.exists() else origin["path"]


def program_differences(receipt: Receipt) -> list[str]:
    """How the program that runs now is another than the one that made the version: no damage, but worth knowing."""
    return [f"{name} was {old}, is {new}" for name, old, new in differences(receipt["program"], program())]


def diff(one: Version, other: Version) -> list[tuple[str, Any, Any]]:
    """(field, of the one, of the other) wherever two versions differ: settings, data, losses, ids, program."""
    return list(differences(_compared(one.receipt()), _compared(other.receipt())))


def difference_rows(one: Version, other: Version) -> list[dict[str, str]]:
    """``diff`` as a table."""
    return [{"field": name, "one": str(old), "other": str(new)} for name, old, new in diff(one, other)]


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


def _few(lines: list[str]) -> list[str]:
    rest = [f"and {len(lines) - _SHOWN:,} more like it"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + rest
