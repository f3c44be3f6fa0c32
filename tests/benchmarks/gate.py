"""How often the gate errs: promotes what is no better, or lets a regression pass.

    python tests/benchmarks/gate.py [CORPUS]

Each comparison draws documents and two models' losses on them. The losses are synthetic (lengths with a heavy tail, two
models that find the same documents hard); with CORPUS, a file of text, they are also those of trainings that differ by
their seed alone, and each document's are given to champion and challenger by the toss of a coin, so that neither is
better. A regression multiplies the challenger's. Takes a minute, and with a corpus some more for four trainings.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lmcore.retraining.gate import decide
from lmcore.runs.scores import DocumentScores
from lmcore.settings.config import RunConfig
from lmcore.settings.retraining import GateConfig
from tests.benchmarks.bench import sized, table

COMPARISONS = sized(200, 2)
SEEDS = sized(4, 2)
STEPS = sized(300, 2)
MANY = sized(50_000, 500)
NOWHERE = Path("nowhere")
NOTHING = {"champion": np.empty(0, np.uint64), "challenger": np.empty(0, np.uint64)}
# Factors of the challenger's losses on new and on old text.
CASES = {
    "A/A": (1.0, 1.0),
    "1 % worse everywhere": (1.01, 1.01),
    "1 % worse on old text": (0.95, 1.01),
    "1 % better on new text": (0.99, 1.0),
    "3 % better on new text": (0.97, 1.0),
}


@dataclass(frozen=True)
class Simulation:
    """A world of documents: their bytes, and the nats that two equally good models need for each (2, n)."""

    text_bytes: Any
    nats: Any
    draw: np.random.Generator
    documents: int
    """In each group of a comparison."""

    @classmethod
    def from_shapes(cls, draw: np.random.Generator, documents: int) -> Self:
        """Made up: 1.5 nats a byte; documents differ by 25 %, and what two models need for one by about 1 %, for a
        short one by more, with heavy tails. So it was found between two seeds of small models on Japanese text."""
        text_bytes = np.maximum(20, draw.lognormal(7, 1.4, 20_000)).astype(np.int64)
        hard = draw.lognormal(0, 0.25, 20_000) * 1.5 * text_bytes
        spread = 0.002 + 0.005 * np.sqrt(300 / text_bytes)
        return cls(text_bytes, hard * (1 + spread * draw.standard_t(4, (2, 20_000))), draw, documents)

    def pair(self, new: float, old: float) -> tuple[DocumentScores, DocumentScores]:
        """Champion and challenger on documents of their own; the challenger's losses times ``new`` or ``old``."""
        count = 2 * self.documents
        rows, groups = self.draw.integers(len(self.text_bytes), size=count), np.repeat(["new", "old"], self.documents)
        first = self.draw.integers(2, size=count)
        factor = np.where(groups == "new", new, old)
        champion = _scores(self.text_bytes[rows], self.nats[first, rows], groups)
        return champion, replace(champion, nats=self.nats[1 - first, rows] * factor)


def _scores(text_bytes: Any, nats: Any, groups: Any) -> DocumentScores:
    hashes, sources = np.arange(1, len(nats) + 1).astype(np.uint64), np.full(len(nats), "text")
    return DocumentScores("", "", 0, hashes, nats, text_bytes // 4 + 1, text_bytes, sources, groups)


def rates(simulation: Simulation, comparisons: int, config: GateConfig) -> dict[str, float]:
    """The share of comparisons in which the challenger was promoted, by case."""
    return {case: _promoted(simulation, comparisons, config, *factors) for case, factors in CASES.items()}


def _promoted(simulation: Simulation, comparisons: int, config: GateConfig, new: float, old: float) -> float:
    pairs = (simulation.pair(new, old) for _ in range(comparisons))
    return sum(decide(*pair, config, NOTHING, NOWHERE).promoted for pair in pairs) / comparisons


def trained_scores(corpus: Path) -> list[DocumentScores]:
    """Scores of small models, trained alike but for the seed, on a quarter of the corpus that was held out."""
    from lmcore.corpus.listing import open_corpus
    from lmcore.dataset.tokenization import tokenize
    from lmcore.retraining.scoring import dataset_texts, score_texts
    from lmcore.runs.prepare import prepare_run
    from lmcore.tokenizer.make import make_tokenizer
    from lmcore.training.train import train

    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            settings = {
                "corpus": {"paths": [str(corpus)], "validation_fraction": 0.25, "max_bytes": 20_000},
                "dataset": {"block_size": 128},
                "model": {"layers": 2, "width": 96, "heads": 2},
                "train": {"max_steps": STEPS, "learning_rate": 3e-3, "seed": seed, "validate_every": STEPS},
                "store": folder,
            }
            config = RunConfig.model_validate(settings)
            found, store = open_corpus(config)
            tokenizer = make_tokenizer(config.tokenizer, config.corpus, found, store)
            dataset = tokenize(config.corpus, found, tokenizer, store)
            checkpoint = train(prepare_run(config, dataset, tokenizer, store)).checkpoint
            texts = [
                text._replace(group="old" if number % 2 else "new")
                for number, text in enumerate(dataset_texts(dataset.folder))
            ]
            scores.append(score_texts(checkpoint, texts))
            print(f"seed {seed}: {scores[-1].total.bits_per_byte:.4f} bits per byte", file=sys.stderr)
    return scores


def _rows(world: str, make: Any) -> list[list[str]]:
    rows = []
    for documents in (200, 1000):
        simulation = make(documents)
        found = rates(simulation, COMPARISONS, GateConfig())
        rows += [[f"{case}, {world}", f"{documents:,} + {documents:,}", f"{100 * found[case]:.1f}"] for case in found]
    return rows


def _as_they_are(scores: list[DocumentScores]) -> list[str]:
    pairs = list(permutations(scores, 2))
    promoted = sum(decide(*pair, GateConfig(), NOTHING, NOWHERE).promoted for pair in pairs)
    counts = scores[0].by("group")
    documents = f"{counts['new'].documents:,} + {counts['old'].documents:,}"
    return ["another seed, as it is", documents, f"{promoted} of {len(pairs)} pairs"]


def main() -> None:
    rows = _rows("synthetic", lambda documents: Simulation.from_shapes(np.random.default_rng(1), documents))
    if len(sys.argv) > 1:
        scores = trained_scores(Path(sys.argv[1]))
        nats = np.stack([scores[0].nats, scores[1].nats])
        draw = np.random.default_rng(2)
        rows += _rows("trained", lambda documents: Simulation(scores[0].text_bytes, nats, draw, documents))
        rows.append(_as_they_are(scores))
    table(f"Promoted, of {COMPARISONS} comparisons each", "challenger|documents, new + old|promoted, %", rows)
    many = Simulation.from_shapes(np.random.default_rng(3), MANY).pair(0.99, 1.0)
    start = time.perf_counter()
    decide(*many, GateConfig(), NOTHING, NOWHERE)
    table("Cost", "documents|resamples|seconds", [[f"{2 * MANY:,}", "2,000", f"{time.perf_counter() - start:.1f}"]])


if __name__ == "__main__":
    main()
