"""A run: the folder of one training, with its record, results and checkpoints.

runs/<name>/  config.json  lock  progress.json  metrics.jsonl  samples.jsonl  tensorboard/  checkpoints/
training.json  evaluation.json  model/  report.md  report.png
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lmcore.errors import StoreError, owner_named
from lmcore.settings.config import RunConfig
from lmcore.store.artifacts import check_version, find_artifact, read_manifest, verify_artifact
from lmcore.store.json_files import from_json
from lmcore.store.outputs import Output, Record
from lmcore.tokenizer.tokenizer import Tokenizer, TokenizerInfo

Shape = dict[str, Any]
"""The content of transformers' config.json."""


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    folder: Path
    config: RunConfig
    identity: dict[str, Any]
    """Everything that decides what is trained."""
    tokenizer_info: TokenizerInfo
    shape: Shape
    record: dict[str, Any] = field(repr=False, compare=False)
    """The content of config.json."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the run's config.json. Raises StoreError when it is missing, damaged or of a newer format."""
        folder = folder.absolute()
        path = folder / "config.json"
        try:
            with owner_named(path):
                record = from_json(path.read_bytes())
            check_version(record["identity"], path)
            return cls(
                folder=folder,
                config=RunConfig.model_validate(record["config"]),
                identity=record["identity"],
                tokenizer_info=TokenizerInfo.model_validate(record["tokenizer"], extra="ignore"),
                shape=dict(record["shape"]),
                record=record,
            )
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{folder} is not a run: it has no config.json") from None
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error!r}. Begin the run again with --fresh") from error

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
    def lock(self) -> Path:
        return self.folder / "lock"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_folder, normalize=self.config.corpus.normalize)


def run_folders(store: Path) -> list[Path]:
    """The folders of all runs. A folder without config.json was left by a killed start and is not a run."""
    return sorted(path.parent for path in (store / "runs").glob("[!.]*/config.json"))


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
    if result is None or whole_checkpoint(run.checkpoints, result.step) is None:
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


def trained_weights(folder: Path) -> str:
    """The hash of the weights that the training of a run's folder ended with. Raises StoreError where it did not."""
    result = TrainingResult.load(folder)
    if result is None:
        raise StoreError(f"{folder / TrainingResult.file_name} is missing: run the pipeline again")
    return result.weights


def weights_hash(checkpoint: Path) -> str:
    """The hash of the weights in a checkpoint folder, from its manifest."""
    return str(read_manifest(checkpoint)["files"]["model.safetensors"]["blake3"])


def newest_first(folder: Path) -> list[Path]:
    """The checkpoint folders in a folder, whole or damaged."""
    return sorted(folder.glob("step-*"), key=step_of, reverse=True)
