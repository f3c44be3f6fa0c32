"""What a retraining costs and gains: python tests/benchmarks/retraining.py TEXT.jsonl.gz [--seeds 3]

TEXT has one {"id": "SOURCE:...", "text": ...} a line and two sources. The larger is the old text, a tenth as much of
the smaller is what is new; of both, documents are held out, the same for all. A champion is trained on the old text;
another model from scratch on everything, at full cost; and one by every recipe below. What is compared are the losses
on old and new held-out text, and the tokens that were trained on after the new text came. The recipes were fixed before
any was run.
"""

import argparse
import dataclasses
import gzip
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import WORK, sized, table

from lmcore.corpus.listing import open_corpus
from lmcore.dataset.manifest import Dataset, age_of
from lmcore.dataset.tokenization import tokenize
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.retraining.challenge import warm_start
from lmcore.retraining.new_documents import split_by_age
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run, TrainingResult
from lmcore.settings.config import CorpusConfig, DatasetConfig, ModelConfig, RunConfig, TokenizerConfig, TrainConfig
from lmcore.settings.retraining import RetrainConfig, RetrainingConfig
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import TokenizerInfo
from lmcore.training.train import train

OLD_BYTES, EPOCHS, PIECES = sized(2_000_000, 40_000), sized(4.0, 0.2), sized(2000, 400)
RECIPES: dict[str, dict[str, Any]] = {
    "trunk, replay 0.75, budget 10": {"replay": 0.75, "budget": 10},
    "trunk, replay 0.85, budget 10": {"replay": 0.85, "budget": 10},
    "trunk, replay 0.90, budget 10": {"replay": 0.9, "budget": 10},
    "trunk, replay 0.85, budget 5": {"replay": 0.85, "budget": 5},
    "export warmed up again, replay 0.85, budget 10": {"replay": 0.85, "budget": 10, "start": "export"},
}


@dataclass(frozen=True)
class Outcome:
    """Of one model: tokens trained on since the new text came, and nats per token on held-out text."""

    tokens: int
    old: float
    new: float


def texts(path: Path) -> tuple[list[str], list[str]]:
    """Documents of the larger source, and of the smaller, each in an order of its own."""
    by_source: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            by_source.setdefault(line["id"].partition(":")[0], []).append(line["text"])
    larger, smaller = sorted(by_source.values(), key=lambda documents: -sum(map(len, documents)))[:2]
    return larger, smaller


def taken(documents: list[str], size: int) -> list[str]:
    """Every n-th document, so that they hold about ``size`` bytes."""
    total = sum(len(text.encode()) for text in documents)
    step = max(1, round(total / size))
    return documents[::step]


def write(path: Path, documents: list[str]) -> str:
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents), encoding="utf-8"
    )
    return str(path)


class Experiment:
    """Old and new text, one tokenizer, and the trainings of one seed after the other."""

    def __init__(self, source: Path) -> None:
        folder = WORK / "retraining"
        folder.mkdir(parents=True, exist_ok=True)
        larger, smaller = texts(source)
        kept, held = ([doc for i, doc in enumerate(larger) if (i % 10 == 0) == out] for out in (False, True))
        new, new_held = ([doc for i, doc in enumerate(smaller) if (i % 3 == 0) == out] for out in (False, True))
        self.old = [write(folder / "old.jsonl", taken(kept, OLD_BYTES))]
        self.new = [write(folder / "new.jsonl", taken(new, OLD_BYTES // 10))]
        self.old_held = write(folder / "old-held.jsonl", held)
        self.new_held = write(folder / "new-held.jsonl", taken(new_held, OLD_BYTES // 10))
        self.config = RunConfig(
            store=folder / "store",
            tokenizer=TokenizerConfig(vocab_size=PIECES),
            dataset=DatasetConfig(block_size=128),
            model=ModelConfig(layers=2, width=96, heads=4),
            train=TrainConfig(
                batch_size=8,
                epochs=EPOCHS,
                learning_rate=3e-3,
                min_learning_rate=3e-4,
                schedule="wsd",
                validate_every=10**9,
                checkpoint_every=10**9,
            ),
        )
        self.tokenizer: TokenizerInfo | None = None
        self.earlier = self.dataset(self.old, [self.old_held])
        self.everything = self.dataset(self.old + self.new, [self.old_held, self.new_held])
        self.apart, self.news = split_by_age(self.everything, self.earlier.folder)

    def dataset(self, paths: list[str], held: list[str]) -> Dataset:
        corpus_config = CorpusConfig(paths=paths, validation_paths=held)
        corpus, store = open_corpus(self.config.model_copy(update={"corpus": corpus_config}))
        if self.tokenizer is None:  # trained on the old text
            self.tokenizer = make_tokenizer(self.config.tokenizer, corpus_config, corpus, store)
        return tokenize(corpus_config, corpus, self.tokenizer, store)

    def trained(self, config: RunConfig, dataset: Dataset) -> TrainingResult:
        assert self.tokenizer is not None
        return train(prepare_run(config, dataset, self.tokenizer, config.store.absolute()))

    def outcome(self, result: TrainingResult) -> Outcome:
        """With the run's weights on the held-out text, by age."""
        run = Run.open(result.folder)
        if run.identity["dataset_id"] != self.apart.id:
            run = dataclasses.replace(run, identity=run.identity | {"dataset_id": self.apart.id})
            (run.folder / "evaluation.json").unlink(missing_ok=True)
        sources = evaluate(run, result.checkpoint).sources
        losses = {age_of(name): score.nats_per_token for name, score in sources.items()}
        return Outcome(result.tokens, losses["old"], losses["new"])

    def outcomes(self, seed: int) -> Iterator[tuple[str, Outcome]]:
        train_config = self.config.train.model_copy(update={"seed": seed})
        config = self.config.model_copy(update={"train": train_config})
        champion = self.trained(config, self.earlier)
        yield "champion, before the new text", self.outcome(champion)
        yield "from scratch on everything", self.outcome(self.trained(config, self.everything))
        exported = export(champion, evaluate(Run.open(champion.folder), champion.checkpoint)).model_dir
        for name, recipe in RECIPES.items():
            retrain = RetrainConfig(**dict(config), retraining=RetrainingConfig(**recipe))
            stable = champion.trunk if retrain.retraining.start == "trunk" else None
            challenger = warm_start(retrain, self.apart.folder, self.news, stable, exported, 0)
            yield name, self.outcome(self.trained(challenger, self.apart))
        only_old = warm_start(retrain, self.apart.folder, self.news, champion.trunk, exported, 0)
        only_old = only_old.model_copy(update={"dataset": self.config.dataset})
        yield "trunk, old text only, as many steps", self.outcome(self.trained(only_old, self.earlier))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=sized(3, 1))
    options = parser.parse_args()
    experiment = Experiment(options.text)
    found: dict[str, list[Outcome]] = {}
    for seed in range(options.seeds):
        for name, outcome in experiment.outcomes(seed):
            found.setdefault(name, []).append(outcome)
            print(f"seed {seed}: {name}: {outcome}", flush=True)
    scratch = found["from scratch on everything"]
    rows = []
    for name, outcomes in found.items():
        cost = f"{outcomes[0].tokens / scratch[0].tokens:.0%}"
        rows.append([name, cost, *(_against(outcomes, scratch, age) for age in ("old", "new"))])
    news = experiment.news
    old_tokens = experiment.everything.tokens - news.new_tokens
    title = f"{old_tokens:,} old tokens, {news.new_tokens:,} new ones; {options.seeds} seeds, nats per token"
    table(
        title, "model|tokens trained, of from scratch|old text (over from scratch)|new text (over from scratch)", rows
    )


def _against(outcomes: list[Outcome], scratch: list[Outcome], age: str) -> str:
    losses = [getattr(outcome, age) for outcome in outcomes]
    differences = [loss - getattr(base, age) for loss, base in zip(losses, scratch, strict=True)]
    spread = f"{min(differences):+.3f} to {max(differences):+.3f}"
    return f"{statistics.mean(losses):.3f} ({statistics.mean(differences):+.3f}; {spread})"


if __name__ == "__main__":
    main()
