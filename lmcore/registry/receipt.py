"""The receipt of a version: all that it was made from.

A receipt is JSON: the run's record (settings, identity, tokenizer, shape), hashes of all corpus files, of the manifests
of chunks, tokenizer and checkpoints, and of the files of results and export, the gate's decision, and the program.
Paths inside the store are relative to it, so that a store can be moved. ``upkeep/verify.py`` hashes everything again,
``upkeep/replay.py`` trains again. No torch.

The hashes of corpus files and of the export are copies, not the hash of a manifest: another read of the corpus replaces
the manifest of the same dataset, and another model card the export of the same weights.
"""

import json
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

from lmcore import clock
from lmcore.errors import StoreError
from lmcore.registry.versions import Version
from lmcore.runs.run import Run, checkpoint_path
from lmcore.settings.section import differences
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, read_manifest
from lmcore.store.files import DIGEST_BYTES, hash_file
from lmcore.store.json_files import read_object
from lmcore.store.layout import path_in_store

_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "pyarrow", "numpy")
_RESULTS = ("training.json", "evaluation.json", "metrics.jsonl")

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
            "chunks": {key: manifest_hash(run.store / "shards" / key) for key in keys},
        },
        "tokenizer": {"id": run.identity["tokenizer_id"], "seal": manifest_hash(run.tokenizer_folder)},
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


def manifest_hash(folder: Path) -> str:
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
    return {path_in_store(run.store, path): manifest_hash(path) for path in paths}


def origin_path(store: Path, origin: dict[str, str]) -> str:
    """The value of train.init_from that leads to the initial model in the store as it lies now."""
    here = store / origin["path"]
    return str(here) if here.exists() else origin["path"]


def program_differences(receipt: Receipt) -> list[str]:
    """How the running program differs from the one that made the version. Such a difference is not damage."""
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
