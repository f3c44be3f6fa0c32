"""The settings of a challenger: where it starts, what it reads, how long it trains.

The model in use, the champion, was trained on an earlier dataset. Its challenger starts from the champion's stable
checkpoint (before the decay, with the optimizer's state; retraining.start = "trunk") or from its exported weights. It
trains on the new text mixed with a replay of the old text. The cost depends on the size of the new text, not on that of
all text. docs/benchmarks.md has the experiment that chose the defaults.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from lmcore.dataset.manifest import AGES, age_of, base_source
from lmcore.errors import ConfigError
from lmcore.retraining.new_documents import NewDocuments, tokens_by_source
from lmcore.settings.config import DatasetConfig, RunConfig
from lmcore.settings.retraining import RetrainConfig
from lmcore.settings.section import differences


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


def warm_start(
    config: RetrainConfig, by_age: Path, news: NewDocuments, stable: Path | None, export: Path, tokens_per_second: float
) -> RunConfig:
    """The settings of a challenger that starts from the checkpoint ``stable``, or without one from ``export``.

    ``by_age`` is the folder of the dataset split by age, ``tokens_per_second`` the champion's speed.
    """
    retraining, train = config.retraining, config.train
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
    run = config.run_config()
    weights = replay_weights(tokens_by_source(by_age), config.dataset, retraining.replay)
    return run.model_copy(
        update={
            "run": "",
            "train": type(train).model_validate(train.model_dump() | changes),
            "dataset": run.dataset.model_copy(update={"weights": weights, "epochs": {}}),
        }
    )


def unused(config: RetrainConfig, champion: dict[str, Any]) -> list[str]:
    """Settings that have no effect, since the challenger keeps those of the champion, each in words.

    ``champion`` are the settings that it was made with. A challenger keeps its tokenizer and, unless it starts from
    scratch, its model; then retraining.budget decides the length.
    """
    is_new = config.fresh_tokenizer or config.retraining.start == "scratch"
    sections = [] if config.fresh_tokenizer else ["tokenizer"] if is_new else ["tokenizer", "model"]
    wanted = config.model_dump(mode="json", include=set(sections))
    lengths = {} if is_new else {name: getattr(config.train, name) for name in ("max_steps", "max_tokens")}
    return [
        f"train.{name} is {value}, retraining.budget decides the length" for name, value in lengths.items() if value
    ] + [
        f"{name} is {new}, the champion's {old}"
        for name, old, new in differences({section: champion[section] for section in sections}, wanted)
    ]


def from_scratch(config: RetrainConfig, by_age: Path) -> RunConfig:
    """The settings of a challenger that starts from scratch, on sources that are split by age.

    The two parts of a source together have the share of the source. Raises ConfigError as ``replay_weights`` does.
    """
    run, dataset, tokens, whole = config.run_config(), config.dataset, tokens_by_source(by_age), Counter[str]()
    for name, count in tokens.items():
        whole[base_source(name)] += count
    mixture: dict[str, dict[str, float]] = {}
    if dataset.weights:
        mixture["weights"] = {
            name: _share(name, 0, dataset) * n / whole[base_source(name)] for name, n in tokens.items()
        }
    if dataset.epochs:
        mixture["epochs"] = {name: _share(name, 1, dataset) for name in tokens}
    return run.model_copy(update={"run": "", "dataset": run.dataset.model_copy(update=mixture)})


def replay_weights(tokens: dict[str, int], dataset: DatasetConfig, replay: float) -> dict[str, float]:
    """Shares of an epoch by source and age: ``replay`` for old text, the rest for new text.

    ``tokens`` are those of sources split by age. Within an age, sources have the shares of ``dataset``, or without them
    those of their tokens. Without old text, or without new text, the other has the whole epoch. Raises ConfigError when
    ``dataset`` names sources, but not one that has text.
    """
    ages = {"old": replay, "new": round(1 - replay, 12)}  # 0.15, not 0.15000000000000002
    within = {name: _share(name, count, dataset) for name, count in tokens.items()}
    totals = {age: sum(share for name, share in within.items() if age_of(name) == age) for age in AGES}
    return {name: ages[age_of(name)] * share / (totals[age_of(name)] or 1) for name, share in within.items()}


def _share(name: str, tokens: int, dataset: DatasetConfig) -> float:
    return _given("weights", dataset, name) if dataset.weights else tokens * _given("epochs", dataset, name)


def _given(field: Literal["weights", "epochs"], dataset: DatasetConfig, name: str) -> float:
    """The value of a field of the settings for the source of a part; 1 where the field is empty."""
    shares, source = getattr(dataset, field), base_source(name)
    if shares and source not in shares:
        raise ConfigError(f"dataset.{field} must name every source, and {source} has text now: 0 leaves it out")
    return float(shares.get(source, 1.0))
