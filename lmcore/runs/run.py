"""A run: the folder of one training, named by everything that decides its result.

    runs/<name>/  config.json  lock  progress.json  metrics.jsonl  samples.jsonl  tensorboard/  checkpoints/
                  training.json  evaluation.json  model/  report.md  report.png

The name comes from the result fields of the settings and the dataset id. So the same command finds the same folder,
continues an unfinished run and returns a finished one. Nothing here needs torch.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lmcore.dataset.manifest import Dataset
from lmcore.errors import ConfigError, RunError, StoreError
from lmcore.runs.initial_model import InitialModel, Shape, init_fingerprint, shape_of_settings
from lmcore.runs.run_record import damaged_record, read_record
from lmcore.runs.seen_documents import SEEN_DOCUMENTS, SeenDocuments, seen_documents
from lmcore.settings.config import RunConfig
from lmcore.settings.section import differences, fingerprint, result_fields
from lmcore.store.artifacts import FORMAT_VERSION, find_artifact, read_manifest, verify_artifact
from lmcore.store.files import remove, remove_stale_temp, write_file
from lmcore.store.json_files import json_bytes
from lmcore.store.locks import locked
from lmcore.store.outputs import Output, Record
from lmcore.tokenizer.tokenizer import Tokenizer, TokenizerInfo

_log = logging.getLogger(__name__)


def run_identity(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Everything that decides what is trained. Equal identities are one run."""
    train = config.train
    early_stopping = {"validate_every": train.validate_every, "validation_tokens": train.validation_tokens}
    first_weights = init_fingerprint(train.init_from)
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
    if config.run:
        return config.run
    model = config.model
    identity = fingerprint(run_identity(config, dataset))
    if config.train.init_from:
        return f"continued-{identity}"
    return f"{model.architecture}-{model.layers}x{model.width}-{identity}"


def run_key(config: RunConfig, dataset: Dataset) -> str:
    """The run's name and identity, for caches. A named run may be started again with other settings."""
    return f"{run_name(config, dataset)}-{fingerprint(run_identity(config, dataset))}"


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    folder: Path
    config: RunConfig
    identity: dict[str, Any]
    tokenizer_info: TokenizerInfo
    shape: Shape
    """Shape of the model, as transformers writes it."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the run's config.json. Raises StoreError when it is missing or of a newer format."""
        record = read_record(folder)
        try:
            return cls(
                folder=folder.absolute(),
                config=RunConfig.model_validate(record["config"]),
                identity=record["identity"],
                tokenizer_info=TokenizerInfo.model_validate(record["tokenizer"], extra="ignore"),
                shape=dict(record["shape"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_record(folder, error) from error

    @property
    def store(self) -> Path:
        return self.folder.parent.parent

    @property
    def dataset_folder(self) -> Path:
        return self.store / "datasets" / str(self.identity["dataset_id"])

    @property
    def tokenizer_folder(self) -> Path:
        return self.store / "tokenizers" / str(self.identity["tokenizer_id"])

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_folder, normalize=self.config.corpus.normalize)


def run_folders(store: Path) -> list[Path]:
    """The folders of all runs. A folder without config.json was left by a killed start and is not a run."""
    return sorted(path.parent for path in (store / "runs").glob("[!.]*/config.json"))


def prepare_run(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path, fresh: bool = False) -> Run:
    """Create the run's folder, or find it. ``fresh`` empties it first.

    Raises RunError when a run of that name was started with other settings or other data, and shows each difference;
    also when it is running and config.when_locked is "refuse". Raises ConfigError when ``fresh`` would delete what
    train.init_from names, and what ``InitialModel.find`` and ``InitialModel.check`` raise.
    """
    initial = InitialModel.find(config.train.init_from) if config.train.init_from else None
    if initial is not None:
        initial.check(config, tokenizer)
    folder = store / "runs" / run_name(config, dataset)
    identity = run_identity(config, dataset)
    with locked(folder / "lock", config.when_locked):
        remove_stale_temp(folder, folder / "checkpoints")
        if fresh:
            _refuse_to_clear_initial_model(config, folder)
            _clear(folder)
        elif (folder / "config.json").exists():
            _check_same(Run.open(folder).identity, identity, folder)
        record = {
            "identity": identity,
            "config": _with_absolute_paths(config).model_dump(mode="json"),
            "tokenizer": tokenizer.model_dump(mode="json"),
            "shape": initial.shape if initial else shape_of_settings(config, tokenizer),
        }
        _list_seen_documents(folder, dataset, initial)
        write_file(folder / "config.json", json_bytes(record))
    return Run.open(folder)


def _list_seen_documents(folder: Path, dataset: Dataset, initial: InitialModel | None) -> None:
    """Write the list if it is missing. If the documents of the initial model are unknown, there is none."""
    if (folder / SEEN_DOCUMENTS).exists():
        return
    seen = SeenDocuments.from_dataset(dataset.folder)
    try:
        before = [seen_documents(initial.folder, dataset.store)] if initial else []
    except StoreError as error:
        _log.warning("the gate will not promote this run, since what it begins with is not known: %s", error)
        return
    for each in before:
        seen = seen.joined(each)
    seen.save(folder)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The settings with absolute paths, for a process that starts in another folder."""
    path = Path(config.train.init_from).expanduser()
    if not config.train.init_from or not path.exists():
        return config
    train = config.train.model_copy(update={"init_from": str(path.absolute())})
    return config.model_copy(update={"train": train})


def _refuse_to_clear_initial_model(config: RunConfig, folder: Path) -> None:
    if not config.train.init_from:
        return
    initial = InitialModel.find(config.train.init_from).folder.resolve()
    if initial.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--fresh would delete the weights that this run is to begin with: train.init_from leads to {initial}, "
            f"inside the run {folder.name} itself. Give another --run NAME, or copy that folder elsewhere first"
        )


def _clear(folder: Path) -> None:
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


class TrainingResult(Record):
    """The result of a finished training."""

    file_name = "training.json"
    run: str
    step: int
    """The step of the resulting checkpoint: the last one, or after early stopping the best one."""
    last_step: int
    tokens: int
    """Tokens trained on, counting repetitions."""
    train_loss: float
    """Mean nats per token over the last log interval."""
    validation_loss: float
    """Nats per token of the resulting checkpoint on the documents scored during training."""
    tokens_per_second: float
    """Mean over all training steps, without validation and checkpoints."""
    skipped_steps: int
    """Steps skipped by the guard."""
    weights: str
    """Hash of the weights. Trainings with equal hashes have the same model."""
    parameters: int
    trainable_parameters: int
    flops_per_token: float
    device: str
    precision: str
    seconds: float = 0.0
    """Seconds in training steps, without validation and checkpoints."""
    ended: str = ""
    """Time of the end in ISO 8601. Empty for a training of an earlier version of this program."""
    trunk: Path | None
    """The checkpoint before the decay of a wsd schedule, from which training can continue."""

    @property
    def checkpoint(self) -> Path:
        return checkpoint_path(self.folder / "checkpoints", self.step)

    def verify(self) -> None:
        super().verify()
        Run.open(self.folder)
        verify_artifact(self.checkpoint)


class Export(Output):
    """The model folder of a run."""

    model_dir: Path

    def verify(self) -> None:
        verify_artifact(self.model_dir)


def finished_training(run: Run) -> TrainingResult | None:
    """The result of a finished training with a whole checkpoint; else None."""
    result = TrainingResult.load(run.folder)
    if result is None or not find_artifact(result.checkpoint, keep_damaged=True):
        return None
    return result if weights_hash(result.checkpoint) == result.weights else None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. Damaged newer ones are set aside with a warning."""
    return next((path for path in newest_first(folder) if find_artifact(path, keep_damaged=True)), None)


def whole_checkpoint(folder: Path, step: int | None) -> Path | None:
    """The checkpoint of a step, or None. A damaged one is set aside with a warning."""
    path = None if step is None else checkpoint_path(folder, step)
    return path if path is not None and find_artifact(path, keep_damaged=True) else None


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of a step, whether it exists or not."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(path.name.rpartition("-")[2])


def weights_hash(checkpoint: Path) -> str:
    """The hash of the weights in a checkpoint folder, from its manifest."""
    return str(read_manifest(checkpoint)["files"]["model.safetensors"]["blake3"])


def newest_first(folder: Path) -> list[Path]:
    """The checkpoint folders in a folder, whole or damaged."""
    return sorted(folder.glob("step-*"), key=step_of, reverse=True)
