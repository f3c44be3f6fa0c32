"""A challenger of a model's champion: its settings, the comparison of both, and the version that it becomes.

The champion is the version in use. Its challenger starts from the champion's stable checkpoint (before the decay, with
the optimizer's state; retraining.start = "trunk") or from its exported weights, and trains on the new text mixed with a
replay of the old text. So the cost depends on the size of the new text, not on that of all text. docs/benchmarks.md has
the experiment that chose the defaults. Each stage finds what exists already, so an interrupted retraining continues
when it is started again.
"""

from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.manifest import AGES, Dataset, age_of, base_source
from lmcore.errors import ConfigError, StoreError
from lmcore.registry.registry import add_version, promote, record_refusal
from lmcore.registry.versions import Version, history, versions
from lmcore.retraining.anchor import ANCHOR, SCORES, aligned, next_anchor, own_scores_path, reference
from lmcore.retraining.gate import Decision, decide
from lmcore.retraining.new_documents import NewDocuments, tokens_by_source
from lmcore.runs.prepare import run_key
from lmcore.runs.run import Run, trained_weights
from lmcore.runs.scores import DocumentScores, scores_path
from lmcore.runs.seen_documents import seen_documents
from lmcore.settings.config import DatasetConfig, RunConfig
from lmcore.settings.retraining import GateConfig, RetrainConfig
from lmcore.settings.section import differences
from lmcore.store.artifacts import read_manifest

# --- settings ---


def skip_reason(config: RetrainConfig, news: NewDocuments) -> str:
    """The reason why nothing is trained, in words; empty if there is enough new text."""
    if news.new_bytes < config.retraining.min_new_bytes:
        return (
            f"{news.new_bytes:,} bytes of new training text in {news.new_documents:,} documents, "
            f"retraining.min_new_bytes is {config.retraining.min_new_bytes:,}"
        )
    if news.new_tokens <= config.dataset.block_size:
        return f"{news.new_tokens:,} tokens of new training text do not fill a block of {config.dataset.block_size}"
    return ""


def challenger_settings(config: RetrainConfig, best: Version, by_age: Path, news: NewDocuments) -> RunConfig:
    """The settings of the challenger's run. ``by_age`` is the folder of the dataset split by age."""
    if _is_from_scratch(config):
        return from_scratch(config, by_age)
    stable = best.stable_checkpoint if config.retraining.start == "trunk" else None
    speed = float(best.receipt()["training"]["tokens_per_second"])
    return warm_start(config, by_age, news, stable, best.folder, speed)


def _is_from_scratch(config: RetrainConfig) -> bool:
    return config.fresh_tokenizer or config.retraining.start == "scratch"


def warm_start(
    config: RetrainConfig, by_age: Path, news: NewDocuments, stable: Path | None, export: Path, tokens_per_second: float
) -> RunConfig:
    """The settings of a challenger that starts from the checkpoint ``stable``, or without one from ``export``.

    ``tokens_per_second`` is the champion's speed.
    """
    retraining, train, run = config.retraining, config.train, config.run_config()
    tokens = retraining.budget * news.new_tokens
    if retraining.budget_minutes:
        tokens = min(tokens, 60 * retraining.budget_minutes * tokens_per_second)
    changes = {
        "max_steps": 0,
        "max_tokens": max(1, round(tokens)),
        "init_from": str(stable or export),
        "init_optimizer": stable is not None,
        "schedule": "wsd",
        # Before the decay the rate is the peak. Decayed weights are warmed up from the rate at which their decay ended.
        "warmup": "0 steps" if stable else "10 %",
        "warmup_from": 0.0 if stable else train.min_learning_rate,
    }
    weights = replay_weights(tokens_by_source(by_age), config.dataset, retraining.replay)
    dataset = run.dataset.model_copy(update={"weights": weights})
    train = type(train).model_validate(train.model_dump() | changes)
    return run.model_copy(update={"run": "", "train": train, "dataset": dataset})


def replay_weights(tokens: dict[str, int], dataset: DatasetConfig, replay: float) -> dict[str, float]:
    """Shares of an epoch by source and age: ``replay`` for old text, the rest for new text.

    ``tokens`` are those of sources split by age. Within an age, sources have the shares of ``dataset``, or without them
    those of their tokens. Without old text, or without new text, the other has the whole epoch. Raises ConfigError when
    ``dataset`` names sources, but not one that has text.
    """
    ages = {"old": replay, "new": round(1 - replay, 12)}  # 0.15, not 0.15000000000000002
    within = {name: _weight(dataset, name) if dataset.weights else count for name, count in tokens.items()}
    totals = {age: sum(share for name, share in within.items() if age_of(name) == age) for age in AGES}
    return {name: ages[age_of(name)] * share / (totals[age_of(name)] or 1) for name, share in within.items()}


def from_scratch(config: RetrainConfig, by_age: Path) -> RunConfig:
    """The settings of a challenger that starts from scratch, on sources that are split by age.

    The two parts of a source together have the share of the source. Raises ConfigError as ``replay_weights`` does.
    """
    run, dataset, tokens, whole = config.run_config(), config.dataset, tokens_by_source(by_age), Counter[str]()
    for name, count in tokens.items():
        whole[base_source(name)] += count
    parts = {name: count / whole[base_source(name)] for name, count in tokens.items()}
    weights = {name: _weight(dataset, name) * part for name, part in parts.items()} if dataset.weights else {}
    return run.model_copy(update={"run": "", "dataset": run.dataset.model_copy(update={"weights": weights})})


def _weight(dataset: DatasetConfig, name: str) -> float:
    """The weight that the settings give to the source of a part."""
    if (source := base_source(name)) not in dataset.weights:
        raise ConfigError(f"dataset.weights must name every source, and {source} has text now: 0 leaves it out")
    return dataset.weights[source]


def unused(config: RetrainConfig, champion: dict[str, Any]) -> list[str]:
    """Settings that have no effect, since the challenger keeps those of the champion, each in words.

    ``champion`` are the settings that it was made with. A challenger keeps its tokenizer and, unless it starts from
    scratch, its model; then retraining.budget decides the length.
    """
    is_new = _is_from_scratch(config)
    kept = set() if config.fresh_tokenizer else {"tokenizer"} if is_new else {"tokenizer", "model"}
    lengths = {} if is_new else {name: getattr(config.train, name) for name in ("max_steps", "max_tokens")}
    changed = differences({name: champion[name] for name in kept}, config.model_dump(mode="json", include=kept))
    return [
        *(f"train.{name} is {value}, retraining.budget decides the length" for name, value in lengths.items() if value),
        *(f"{name} is {new}, the champion's {old}" for name, old, new in changed),
    ]


# --- comparison and decision ---


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


def require_comparable(best: Version, dataset: Path) -> None:
    """Raise StoreError when the champion has another tokenizer and cannot be scored on a dataset's text.

    This is known before the training. The validation text is decoded only if the tokenizers differ.
    """
    if read_manifest(dataset)["tokenizer_id"] != best.receipt()["tokenizer"]["id"]:
        from lmcore.retraining.scoring import dataset_texts  # and with it torch

        deque(dataset_texts(dataset), maxlen=0)


def compare(best: Version | None, folder: Path, gate: GateConfig) -> Decision:
    """The gate's decision about a challenger, by the scores that are kept in ``folder``, that of its run.

    ``evaluate`` wrote the challenger's, ``score_champion`` the champion's and ``score_on_anchor`` those of the anchor.
    The folder also gets the anchor as it is when the challenger is promoted. Raises StoreError when scores are missing.
    """
    store = Run.open(folder).store
    challenger = DocumentScores.load(scores_path(folder, trained_weights(folder)))
    trained_on = {"challenger": _trained_on(folder, store)}
    if best is None:
        decision = decide(None, challenger, gate, trained_on, folder)
        after = next_anchor(None, challenger, challenger, [])
    else:
        champion = DocumentScores.load(scores_path(folder, best.weights))
        trained_on["champion"] = _trained_on(best.folder, store)
        anchor, own = reference(best, champion), DocumentScores.load(own_scores_path(folder))
        decision = decide(champion, challenger, gate, trained_on, folder, (aligned(own, anchor), own))
        after = next_anchor(anchor, own, challenger, decision.references)
    for name, scores in zip((ANCHOR, SCORES), after, strict=True):
        scores.save(folder / name)
    return decision.save()


def record_decision(
    store: Path,
    name: str,
    best: Version | None,
    folder: Path,
    decision: Decision,
    key: str,
    gate: GateConfig,
    page: str,
) -> Version:
    """The challenger as a version, which is made the champion or whose refusal is recorded.

    ``key`` names its run. The history keeps it and the ``gate``, for ``earlier_refusal``, and figures and the address
    of the ``page`` that shows the run, for people. Raises RegistryError when another version was promoted since
    ``best`` was read.
    """
    weights, content = trained_weights(folder), decision.model_dump(mode="json", exclude={"folder"})
    same = (each for each in versions(store, name) if each.weights == weights)
    version = next(same, None) or add_version(
        store, name, Run.open(folder), content, [folder / ANCHOR, folder / SCORES]
    )
    reason = "; ".join(decision.reasons)
    about: dict[str, Any] = {"run": folder.name, "run_key": key, "gate": gate.model_dump(), "page": page}
    about |= version.figures()
    if decision.promoted:
        expected = best.id if best else None
        return promote(store, name, version.id, expected=expected, reason=reason, decision=content, **about)
    record_refusal(store, name, reason, content, version=version.id, **about)
    return version


def _trained_on(folder: Path, store: Path) -> npt.NDArray[np.uint64] | str:
    """Hashes of the documents that weights were trained on, as ``gate.TrainedOn`` has them."""
    try:
        return seen_documents(folder, store).train
    except StoreError as error:
        return f"unknown: {error}"
