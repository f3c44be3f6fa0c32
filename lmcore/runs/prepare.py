"""The start of a run: its identity, its name, and its folder.

The name comes from the result fields of the settings and the dataset id. So the same command finds the same folder,
continues an unfinished run and returns a finished one.
"""

import logging
from pathlib import Path
from typing import Any

from lmcore.dataset.manifest import Dataset
from lmcore.errors import ConfigError, RunError, StoreError
from lmcore.runs.initial_model import InitialModel, shape_of_settings
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS, SeenDocuments, seen_documents
from lmcore.settings.config import RunConfig
from lmcore.settings.section import differences, fingerprint, result_fields
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.files import remove, remove_stale_temp, write_file
from lmcore.store.json_files import json_bytes
from lmcore.store.locks import locked
from lmcore.tokenizer.tokenizer import TokenizerInfo

_log = logging.getLogger(__name__)


def run_identity(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Everything that decides what is trained. Equal identities are one run."""
    train = config.train
    early_stopping = {"validate_every": train.validate_every, "validation_tokens": train.validation_tokens}
    first_weights = InitialModel.find(train.init_from).fingerprint() if train.init_from else ""
    return {
        "format_version": FORMAT_VERSION,
        "dataset_id": dataset.id,
        "tokenizer_id": dataset.tokenizer_id,
        "first_weights": first_weights,
        "dataset": result_fields(config.dataset),
        "model": {} if first_weights else result_fields(config.model),
        "train": result_fields(train) | (early_stopping if train.patience else {}),
    }


def run_name(config: RunConfig, dataset: Dataset) -> str:
    """The name of the run: config.run, or for example gpt2-4x192-0123456789abcdef, continued-0123456789abcdef."""
    model = config.model
    shape = "continued" if config.train.init_from else f"{model.architecture}-{model.layers}x{model.width}"
    return config.run or f"{shape}-{fingerprint(run_identity(config, dataset))}"


def run_key(config: RunConfig, dataset: Dataset) -> str:
    """The run's name and identity, for caches. A named run may be started again with other settings."""
    return f"{run_name(config, dataset)}-{fingerprint(run_identity(config, dataset))}"


def prepare_run(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path, fresh: bool = False) -> Run:
    """The run, in a folder that is new or found. ``fresh`` empties the folder first.

    Raises RunError with each difference when a run of that name has other settings or other data. Raises RunError when
    the run is in use and config.when_locked is "refuse". Raises ConfigError when ``fresh`` would delete the initial
    model. Raises as ``InitialModel.find`` and ``InitialModel.check`` do.
    """
    initial = InitialModel.find(config.train.init_from) if config.train.init_from else None
    if initial is not None:
        initial.check(config, tokenizer)
        # The training process may start in another folder.
        train = config.train.model_copy(update={"init_from": initial.name})
        config = config.model_copy(update={"train": train})
    folder, identity = store / "runs" / run_name(config, dataset), run_identity(config, dataset)
    with locked(folder / "lock", config.when_locked):
        remove_stale_temp(folder, folder / "checkpoints")
        if fresh:
            _clear(folder, initial)
        elif (folder / "config.json").exists():
            _check_same(Run.open(folder).identity, identity, folder)
        record = {
            "identity": identity,
            "config": config.model_dump(mode="json"),
            "tokenizer": tokenizer.model_dump(mode="json"),
            "shape": initial.shape if initial else shape_of_settings(config, tokenizer),
        }
        if not (folder / SEEN_DOCUMENTS).exists():
            _list_seen_documents(folder, dataset, initial)
        write_file(folder / "config.json", json_bytes(record))
    return Run.open(folder)


def _list_seen_documents(folder: Path, dataset: Dataset, initial: InitialModel | None) -> None:
    """Write the list, unless the documents of the initial model are unknown."""
    seen = SeenDocuments.from_dataset(dataset.folder)
    try:
        if initial is not None:
            seen = seen.joined(seen_documents(initial.folder, dataset.store))
    except StoreError as error:
        _log.warning("the gate will not promote this run, because its initial model may have seen any text: %s", error)
    else:
        seen.save(folder)


def _clear(folder: Path, initial: InitialModel | None) -> None:
    if initial is not None and initial.folder.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--fresh would delete the weights that this run is to begin with: train.init_from leads to "
            f"{initial.folder.resolve()}, inside the run {folder.name} itself. Give another --run NAME, or copy that "
            "folder elsewhere first"
        )
    for path in folder.iterdir():
        if path.is_dir():
            remove(path)
        elif path.name != "lock":
            path.unlink()


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    rows = [f"  {name}: was {was!r}, is {now!r}" for name, was, now in differences(old, new)]
    if rows:
        raise RunError(
            f"run {folder.name} was started with other settings:\n"
            + "\n".join(rows)
            + "\nGive them back, choose another --run NAME, or begin again with --fresh"
        )
