"""Train a version again from its receipt, and compare the losses of all rows of metrics.jsonl, and the weights.

On a CPU, with the same program and packages, they are equal to the last bit.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcore.registry.receipt import origin_path
from lmcore.registry.registry import METRICS
from lmcore.registry.versions import Version
from lmcore.runs.launch import train_in_child
from lmcore.runs.metrics import read_metrics
from lmcore.store.files import write_file
from lmcore.store.json_files import Row, json_bytes
from lmcore.store.outputs import Output

_INPUTS = ("tokenizers", "shards", "datasets")


class Replay(Output):
    """The result of training a version again."""

    version: str
    compared: int
    """The number of losses compared, of training and validation."""
    differences: list[str]
    """The first row that differs, and the weights if they differ; empty where both trainings made the same model."""
    weights: str
    """Hash of the final weights."""


def replay(version: Version, on_line: Callable[[str], None] = lambda line: None) -> Replay:
    """Train ``version`` again in a temporary store, whose inputs are those of its own store. Costs what it cost.

    Raises what ``train_in_child`` raises, StoreError when the dataset is gone.
    """
    receipt = version.receipt()
    with tempfile.TemporaryDirectory(prefix="lm-replay-") as folder:
        run = _prepared(Path(folder), version, receipt)
        training = train_in_child(run, on_line)
        now = _losses(read_metrics(run / METRICS))
    then = _losses(read_metrics(version.folder / METRICS))
    differences = _first_difference(then, now)
    if training.weights != receipt["training"]["weights"]:
        differences.append(f"the weights were {receipt['training']['weights']}, are {training.weights}")
    return Replay(version=str(version), compared=len(then), differences=differences, weights=training.weights)


def _prepared(store: Path, version: Version, receipt: dict[str, Any]) -> Path:
    """A run of the same identity in a store that holds nothing of its own."""
    for name in _INPUTS:
        os.symlink(version.store / name, store / name)
    record = receipt["record"]
    settings: dict[str, Any] = {"max_minutes": 0.0, "tensorboard": False}
    if receipt["origin"]:
        settings["init_from"] = origin_path(version.store, receipt["origin"])
    train = record["config"]["train"] | settings
    run = store / "runs" / str(receipt["run"])
    run.mkdir(parents=True)
    config = {**record["config"], "train": train, "store": str(store)}
    write_file(run / "config.json", json_bytes({**record, "config": config}))
    return run


def _losses(rows: list[Row]) -> list[tuple[str, int, float]]:
    return [(row["kind"], row["step"], row["loss"]) for row in rows if "loss" in row]


def _first_difference(then: list[tuple[str, int, float]], now: list[tuple[str, int, float]]) -> list[str]:
    for (kind, step, loss), again in zip(then, now, strict=False):
        if (kind, step, loss) != again:
            return [f"{kind} loss at step {step} was {loss!r}; now: {again[0]} loss at step {again[1]}, {again[2]!r}"]
    return [] if len(then) == len(now) else [f"there were {len(then)} rows with a loss, now {len(now)}"]
