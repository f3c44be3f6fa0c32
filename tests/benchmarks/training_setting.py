"""What is trained, on what, by which loop: sizes, data, and the settings handed to the processes."""

import argparse
import itertools
import random
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import HERE, WORK, python_of
from processes import Figures, Loop, told

from lmcore.corpus.listing import open_corpus
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.stream import TokenStream
from lmcore.dataset.tokenization import tokenize
from lmcore.runs.metrics import read_metrics
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run
from lmcore.settings.config import RunConfig
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import TokenizerInfo

SETTLE, WARM_UP, LOG_EVERY, NEVER = 2, 5, 10, 10**9
BYTES_A_TOKEN, MOST_PIECES, LEAST_TEXT = 8, 8000, 100_000
EQUAL = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "grad_clip": 1.0,
    "compile": "off",
    "log_every": LOG_EVERY,
    "validate_every": NEVER,
    "checkpoint_every": NEVER,
}


@dataclass(frozen=True)
class Size:
    """A GPT-2, its batches, and the steps of a round."""

    layers: int
    width: int
    heads: int
    block: int
    batch: int
    vocabulary: int
    steps: int


SIZES = {
    "smoke": Size(layers=1, width=16, heads=2, block=16, batch=2, vocabulary=320, steps=2),
    "tiny": Size(layers=2, width=64, heads=2, block=64, batch=8, vocabulary=512, steps=20),
    "small": Size(layers=6, width=256, heads=8, block=256, batch=8, vocabulary=8000, steps=10),
    "124M": Size(layers=12, width=768, heads=12, block=1024, batch=16, vocabulary=50_304, steps=20),
    "350M": Size(layers=24, width=1024, heads=16, block=1024, batch=8, vocabulary=50_304, steps=20),
}


class Setting:
    """All that the sections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        changed = {name: value for name in ("batch", "steps") if (value := getattr(options, name))}
        self.size, self.rounds, self._options = replace(SIZES[options.size], **changed), options.rounds, options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = "bf16" if self.device == "cuda" else "fp32"
        self.total_steps = WARM_UP + self.rounds * (SETTLE + self.size.steps) + SETTLE + self.size.steps
        self.folder = WORK / f"training-{options.size}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()
        self._dataset, self._tokenizer = self._data()

    @property
    def tokens(self) -> int:
        """In a round."""
        return self.size.batch * self.size.block * self.size.steps

    # --- data ---

    def _data(self) -> tuple[Dataset, TokenizerInfo]:
        """The corpus in shards, and as flat ids for the peers. Its tokenizer says the size's vocabulary, however few
        pieces it has: the model costs the same."""
        config = self.config({}, {})
        corpus, store = open_corpus(config)
        tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
        dataset = tokenize(config.corpus, corpus, tokenizer, store)
        needed = self.total_steps * self.size.batch * self.size.block
        if dataset.tokens < needed:
            sys.exit(
                f"the corpus has {dataset.tokens:,} tokens, {needed:,} are needed: give more text, or less --steps"
            )
        np.save(self.folder / "ids.npy", np.concatenate(TokenStream(dataset.folder, "train").segments))
        return dataset, tokenizer.model_copy(update={"vocab_size": self.size.vocabulary})

    def config(self, model: dict[str, Any], train: dict[str, Any]) -> RunConfig:
        size = self.size
        shape = {"layers": size.layers, "width": size.width, "heads": size.heads}
        length = {"batch_size": size.batch, "max_steps": self.total_steps + 100, "validation_tokens": 1000}
        return RunConfig.model_validate(
            {
                "store": self.folder / "store",
                "corpus": {"paths": [self._options.corpus or str(self._text())]},
                "tokenizer": {"vocab_size": min(size.vocabulary, MOST_PIECES), "max_train_bytes": 3_000_000},
                "dataset": {"block_size": size.block},
                "model": {**shape, **model},
                "train": {**length, **train},
            }
        )

    def _text(self) -> Path:
        """Words that do not exist, the frequent ones as frequent as in a language."""
        count = max(LEAST_TEXT, self.total_steps * self.size.batch * self.size.block * BYTES_A_TOKEN)
        path = self.folder / f"{count}.txt"
        if not path.exists():
            draw, letters = random.Random(0), "aaabcdeeeefghiiijklmnnooopqrrsssttuuvwxyz"
            words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
            weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
            with open(path, "w") as file:
                while file.tell() < count:
                    file.write(" ".join(draw.choices(words, cum_weights=weights, k=draw.randint(20, 400))) + "\n")
        return path

    # --- loops ---

    def run(self, *, model: dict[str, Any] | None = None, **train: Any) -> Run:
        """A new run, with the settings of ``EQUAL`` but for those given."""
        return self._run(self.config({"dropout": 0.0, **(model or {})}, {**EQUAL, **train}))

    def run_at_defaults(self) -> Run:
        return self._run(self.config({}, {}))

    def _run(self, config: RunConfig) -> Run:
        config = config.model_copy(update={"run": f"run-{next(self._numbers)}"})
        return prepare_run(config, self._dataset, self._tokenizer, config.store, fresh=True)

    def spec(self, **more: Any) -> dict[str, Any]:
        common = {"device": self.device, "precision": self.precision, "max_steps": self.total_steps + 100}
        rounds = {"warm_up": WARM_UP, "settle": SETTLE, "steps": self.size.steps}
        return {**common, **rounds, "batch": self.size.batch, "block": self.size.block, **more}

    def ours(self, run: Run, loop: str = "ours", **more: Any) -> Loop:
        name = f"{loop}-{run.folder.name}-{next(self._numbers)}"
        command = [sys.executable, HERE / "training_ours.py", loop]
        return Loop(name, command, self.spec(run=str(run.folder), **more), self.folder)

    def told_by_ours(self, loop: str, **more: Any) -> Figures:
        return told(loop, [sys.executable, HERE / "training_ours.py", loop], self.spec(**more), self.folder)

    def peer(self, name: str, is_equal: bool) -> Loop:
        python = sys.executable if self._options.here else python_of("training")
        spec = self.spec(equal=is_equal, model=self._gpt2(), ids=str(self.folder / "ids.npy"))
        return Loop(name, [python, HERE / "training_peers.py", name], spec, self.folder)

    def _gpt2(self) -> dict[str, int]:
        size = self.size
        shape = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_positions": size.block}
        return {**shape, "vocab_size": size.vocabulary, "bos_token_id": 0, "eos_token_id": 0}

    @cached_property
    def matmul_tflops(self) -> float:
        """What this device does in a large product of matrices."""
        return self.told_by_ours("matmul")["tflops"]

    def data_wait_share(self, run: Run) -> float:
        """The median over log rows in which the loop did not stand still between rounds."""
        still = [WARM_UP + 1 + number * (SETTLE + self.size.steps) for number in range(self.rounds + 1)]
        rows = [row for row in read_metrics(run.metrics) if row["kind"] == "train" and row["step"] > WARM_UP]
        kept = [row for row in rows if not any(row["step"] - LOG_EVERY <= step < row["step"] for step in still)]
        return float(np.median([row["data_wait_share"] for row in kept or rows]))
