"""The champion of a model, and a challenger that the gate compares with it and that becomes a version.

Both have scores of the same validation documents, split by age. The gate decides, and the version, its receipt and the
history record the decision. Each stage finds what exists already, so an interrupted retraining continues when it is
started again.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lmcore.dataset.manifest import Dataset
from lmcore.errors import StoreError
from lmcore.registry.registry import add_version, promote, record_refusal
from lmcore.registry.versions import Version, champion, history, versions
from lmcore.retraining.evaluation_texts import dataset_texts
from lmcore.retraining.gate import Decision, decide, decide_first
from lmcore.runs.prepare import run_key
from lmcore.runs.run import Run, TrainingResult
from lmcore.runs.scores import DocumentScores, scores_path
from lmcore.runs.seen_documents import seen_documents
from lmcore.settings.config import RunConfig
from lmcore.settings.retraining import GateConfig
from lmcore.store.artifacts import find_artifact, read_manifest
from lmcore.tokenizer.tokenizer import TokenizerInfo


@dataclass(frozen=True)
class Champion:
    """The version in use, and its receipt."""

    version: Version
    receipt: dict[str, Any]

    @classmethod
    def from_store(cls, store: Path, name: str) -> Self | None:
        """The champion of model ``name``; None before the first one. Raises as ``registry.champion`` does."""
        version = champion(store, name)
        return None if version is None else cls(version, version.receipt())

    @property
    def tokenizer(self) -> TokenizerInfo:
        """Raises StoreError when it is gone from the store."""
        return TokenizerInfo.open(self.version.store / "tokenizers" / str(self.receipt["tokenizer"]["id"]))

    @property
    def weights(self) -> str:
        """The hash of its weights."""
        return str(self.receipt["training"]["weights"])

    @property
    def block_size(self) -> int:
        """Tokens in the blocks that it was trained on."""
        return int(self.receipt["record"]["config"]["dataset"]["block_size"])

    @property
    def stable_checkpoint(self) -> Path | None:
        """The stable checkpoint, before the decay, if there is one that is whole."""
        if not self.receipt["training"]["trunk"]:
            return None
        run = self.version.store / "runs" / str(self.receipt["run"])
        path = run / "checkpoints" / Path(self.receipt["training"]["trunk"]).name
        return path if find_artifact(path, keep_damaged=True) else None

    @property
    def tokens_per_second(self) -> float:
        """The speed of its training."""
        return float(self.receipt["training"]["tokens_per_second"])


def earlier_refusal(
    store: Path, name: str, config: RunConfig, dataset: Dataset, gate: GateConfig
) -> dict[str, Any] | None:
    """The event that refused a challenger with equal settings on this dataset, if there is one.

    It is a refusal by an equal gate, or a rollback after the challenger was promoted by any gate.
    """
    key, events = run_key(config, dataset), history(store, name)
    tried = {event["version"] for event in events if event.get("run_key") == key}
    for event in reversed(events):
        by_gate = event["event"] == "refused" and event.get("gate") == gate.model_dump() and event.get("run_key") == key
        if by_gate or (event["event"] == "rolled back" and event["from"] in tried):
            return event
    return None


def require_comparable(best: Champion, dataset: Path) -> None:
    """Raise StoreError when the champion has another tokenizer and cannot be scored on a dataset's text.

    This is known before the training. The validation text is decoded only if the tokenizers differ.
    """
    if read_manifest(dataset)["tokenizer_id"] != best.receipt["tokenizer"]["id"]:
        deque(dataset_texts(dataset), maxlen=0)


def compare(best: Champion | None, folder: Path, gate: GateConfig) -> Decision:
    """The gate's decision about a challenger, by the scores that are kept in ``folder``, that of its run.

    ``evaluate`` wrote the challenger's, ``score_champion`` the champion's. Raises StoreError when they are missing.
    """
    run = Run.open(folder)
    trained = _trained_on(run.folder, run.store)
    challenger = DocumentScores.load(scores_path(folder, _weights(folder)))
    if best is None:
        return decide_first(challenger, gate, {"challenger": trained}, run.folder).save()
    before = _trained_on(best.version.folder, run.store)
    scores = DocumentScores.load(scores_path(folder, best.weights))
    return decide(scores, challenger, gate, {"champion": before, "challenger": trained}, run.folder).save()


def record_decision(
    store: Path, name: str, best: Champion | None, folder: Path, decision: Decision, key: str, gate: GateConfig
) -> Version:
    """The challenger as a version, which is made the champion or whose refusal is recorded.

    ``key`` names its run. The history keeps it and the ``gate``, for ``earlier_refusal``. Raises RegistryError when
    another version was promoted since ``best`` was read.
    """
    run, weights, content = Run.open(folder), _weights(folder), decision.model_dump(mode="json", exclude={"folder"})
    same = (each for each in versions(store, name) if each.receipt()["training"]["weights"] == weights)
    version = next(same, None) or add_version(store, name, run, content)
    reason = "; ".join(decision.reasons)
    about: dict[str, Any] = {"run": run.folder.name, "run_key": key, "gate": gate.model_dump()}
    if decision.promoted:
        expected = best.version.id if best else None
        return promote(store, name, version.id, expected=expected, reason=reason, decision=content, **about)
    record_refusal(store, name, reason, content, version=version.id, **about)
    return version


def _trained_on(folder: Path, store: Path) -> npt.NDArray[np.uint64] | str:
    """Hashes of the documents that weights were trained on, as ``gate.TrainedOn`` has them."""
    try:
        return seen_documents(folder, store).train
    except StoreError as error:
        return f"unknown: {error}"


def _weights(run_folder: Path) -> str:
    result = TrainingResult.load(run_folder)
    if result is None:
        raise StoreError(f"{run_folder / TrainingResult.file_name} is missing: run the pipeline again")
    return result.weights
