"""Recipes of the smallest preset at equal CPU time: python tests/benchmarks/recipe.py [RECIPE ...] [--seeds 3]

Every recipe trains for 143 CPU seconds of one thread, which are 1,026 steps of the recipe "small" on the quiet machine
that the table was made on, and is scored on all validation documents. Other work on a machine makes seconds longer, so
what a step costs is measured in turns with a step of "small", and the number of steps follows from the median ratio.
Each result is a line in tests/benchmarks/work/recipe.jsonl; what is there already is not trained again. Without names
the table of all that is there is printed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads

from bench import WORK, sized, table

from lmcore.corpus.listing import open_corpus
from lmcore.dataset.loader import loader
from lmcore.dataset.mixture import open_blocks
from lmcore.dataset.stream import IGNORED_LABEL
from lmcore.dataset.tokenization import tokenize
from lmcore.model.device import choose_device
from lmcore.model.evaluate import evaluate
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run
from lmcore.settings.config import RunConfig
from lmcore.settings.read import merge
from lmcore.tokenizer.make import make_tokenizer
from lmcore.training.distributed import Ranks
from lmcore.training.train import train
from lmcore.training.train_step import TrainStep

STEPS = sized(1026, 2)
"""Of the recipe "small" in the CPU time that every recipe gets."""
RESULTS = WORK / "recipe.jsonl"
NEVER = 10**9
ROUNDS, STEPS_A_ROUND = sized(5, 1), sized(3, 1)

CORPORA: dict[str, dict[str, Any]] = {
    "stdlib": {
        "paths": ["stdlib:"],
        "include": ["*.py"],
        "exclude": ["site-packages", "test", "tests", "idle_test", "sitecustomize.py"],
    }
}
FIRST: dict[str, Any] = {
    "tokenizer": {"vocab_size": sized(4000, 400)},
    "dataset": {"block_size": 128},
    "model": {"architecture": "gpt2", "layers": 4, "width": 192, "heads": 6},
    "train": {"batch_size": 8, "learning_rate": 3e-3, "min_learning_rate": 3e-4, "warmup": "7 %"},
}


def changed(
    base: dict[str, Any], tokenizer: Any = None, dataset: Any = None, model: Any = None, train: Any = None
) -> dict[str, Any]:
    """A recipe with other settings."""
    changes = {"tokenizer": tokenizer, "dataset": dataset, "model": model, "train": train}
    return merge(base, {section: fields for section, fields in changes.items() if fields})


MUON = {"optimizer": "muon", "learning_rate": 1e-2, "min_learning_rate": 0.0, "schedule": "linear", "warmup": "2 %"}
SMALL = changed(
    FIRST,
    tokenizer={"model_type": "byte_bpe"},
    model={"architecture": "llama", "layers": 3, "width": 128, "heads": 4},
    train=MUON,
)
RECIPES: dict[str, dict[str, Any]] = {
    "first": FIRST,
    "small": SMALL,
    "b256": changed(SMALL, dataset={"block_size": 256}, train={"batch_size": 4}),
    "b256x8": changed(SMALL, dataset={"block_size": 256}),
    "b64x16": changed(SMALL, dataset={"block_size": 64}, train={"batch_size": 16}),
    "batch4": changed(SMALL, train={"batch_size": 4}),
    "batch16": changed(SMALL, train={"batch_size": 16}),
    "lr2e-2": changed(SMALL, train={"learning_rate": 2e-2}),
    "lr3e-2": changed(SMALL, train={"learning_rate": 3e-2}),
    "lr5e-3": changed(SMALL, train={"learning_rate": 5e-3}),
    "v2500": changed(SMALL, tokenizer={"vocab_size": 2500}),
    "v1500": changed(SMALL, tokenizer={"vocab_size": 1500}),
    "v6000": changed(SMALL, tokenizer={"vocab_size": 6000}),
    "2x192": changed(SMALL, model={"layers": 2, "width": 192}),
    "2x128": changed(SMALL, model={"layers": 2}),
    "4x128": changed(SMALL, model={"layers": 4}),
    "3x96": changed(SMALL, model={"width": 96, "heads": 3}),
    "3x192": changed(SMALL, model={"width": 192}),
    "heads2": changed(SMALL, model={"heads": 2}),
    "qwen3": changed(SMALL, model={"architecture": "qwen3"}),
    "mlp512": changed(SMALL, model={"mlp_width": 512}),
    "untied": changed(SMALL, model={"tie_embeddings": False}),
    "decay0": changed(SMALL, train={"weight_decay": 0.0}),
    "beta99": changed(SMALL, train={"beta2": 0.99}),
    "untied-beta99": changed(SMALL, model={"tie_embeddings": False}, train={"beta2": 0.99}),
    "untied-beta999": changed(SMALL, model={"tie_embeddings": False}, train={"beta2": 0.999}),
    "beta999": changed(SMALL, train={"beta2": 0.999}),
    "momentum90": changed(SMALL, train={"muon_momentum": 0.9}),
    "wsd": changed(SMALL, train={"schedule": "wsd", "decay": "50 %"}),
}


def trained(name: str, seed: int, corpus: str, share: float) -> dict[str, Any]:
    """Train and score a recipe."""
    steps = round(STEPS * share / cost(name, corpus))
    run = opened(name, corpus, seed, steps)
    start = time.process_time()
    result = train(run)
    seconds = time.process_time() - start
    evaluation = evaluate(run, result.checkpoint)
    return {
        "recipe": name,
        "corpus": corpus,
        "seed": seed,
        "share": share,
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
        "parameters": result.parameters,
        "bits_per_byte": evaluation.bits_per_byte,
        "settings": RECIPES[name],
    }


def opened(name: str, corpus: str, seed: int = 0, steps: int = STEPS) -> Run:
    """The run of a recipe, ready to be trained."""
    train = {"max_steps": steps, "seed": seed, "validate_every": NEVER, "checkpoint_every": NEVER, "device": "cpu"}
    settings = merge(RECIPES[name], {"corpus": CORPORA[corpus], "train": train})
    config = RunConfig.model_validate({**settings, "store": WORK / "recipe-store"})
    found, store = open_corpus(config)
    tokenizer = make_tokenizer(config.tokenizer, config.corpus, found, store)
    dataset = tokenize(config.corpus, found, tokenizer, store)
    return prepare_run(config, dataset, tokenizer, store, False)


def cost(name: str, corpus: str) -> float:
    """CPU seconds of a step, in steps of "small"."""
    if all(RECIPES[name][part] == RECIPES["small"][part] for part in ("tokenizer", "dataset", "model")) and all(
        RECIPES[name]["train"][field] == RECIPES["small"]["train"][field] for field in ("batch_size", "optimizer")
    ):
        return 1.0
    mine, small = (stepper(opened(each, corpus)) for each in (name, "small"))
    ratios = []
    for _ in range(ROUNDS):
        ratios.append(mine() / small())
    return statistics.median(ratios)


def stepper(run: Run) -> Callable[[], float]:
    """A function that makes some steps of a training and gives their CPU seconds."""
    config = run.config.train
    train_step = TrainStep(run, Ranks(), choose_device("cpu"), resumes=False)
    blocks = open_blocks(run.dataset_folder, run.config.dataset)
    batch = next(iter(loader(blocks, config.batch_size, first_block=0, last_block=config.batch_size, seed=0)))
    batch = {**batch, "tokens": (batch["labels"] != IGNORED_LABEL).sum()}

    def steps() -> float:
        train_step.update(1, *train_step.backward(batch), 1e-4)
        start = time.process_time()
        for _ in range(STEPS_A_ROUND):
            train_step.update(1, *train_step.backward(batch), 1e-4)
        return time.process_time() - start

    return steps


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def print_table(corpus: str, share: float) -> None:
    """The mean of the seeds, best recipe first."""
    rows = []
    for name in RECIPES:
        found = [row for row in results() if (row["recipe"], row["corpus"], row["share"]) == (name, corpus, share)]
        if found:
            scores = [row["bits_per_byte"] for row in found]
            spread = f"{min(scores):.3f} to {max(scores):.3f}"
            steps = f"{statistics.median(row['steps'] for row in found):,.0f}"
            rows.append(
                (statistics.mean(scores), [name, f"{statistics.mean(scores):.3f}", spread, str(len(found)), steps])
            )
    table(
        f"Recipes on {corpus}, {143 * share:.0f} CPU seconds each",
        "recipe|bits per byte|range|seeds|steps",
        [r for _, r in sorted(rows)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of that CPU time")
    parser.add_argument("--corpus", default="stdlib", help="stdlib, or a path to text")
    options = parser.parse_args()
    if options.corpus not in CORPORA:
        CORPORA[options.corpus] = {"paths": [options.corpus]}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for name in options.recipes:
            key = (name, options.corpus, seed, options.share)
            if key not in {(row["recipe"], row["corpus"], row["seed"], row["share"]) for row in results()}:
                row = trained(name, seed, options.corpus, options.share)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(*[f"{key} {row[key]}" for key in row if key != "settings"], sep=", ", flush=True)
    print_table(options.corpus, options.share)


if __name__ == "__main__":
    main()
