"""The programs in docs/ do what they are there for."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from lmcore.model.export import export
from lmcore.model.model import trained_model
from lmcore.retraining.scoring import dataset_texts, score_texts
from lmcore.runs.metrics import MetricsWriter
from tests.conftest import Prepared, Trained, prepare, tiny_config, train_and_evaluate, write_corpus

DOCS = Path(__file__).parents[1] / "docs"
TO_MLFLOW = {
    r"import wandb": "import mlflow",
    r"wandb\.init\(.*\)": "mlflow.start_run(run_name=run.name)",
    r"wandb\.log\(": "mlflow.log_metrics(",
    r"wandb\.finish": "mlflow.end_run",
}


def program(name: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    return str(code)


def follower(to_mlflow: bool) -> str:
    code = program("metrics.md")
    for pattern, replacement in TO_MLFLOW.items() if to_mlflow else ():
        code, count = re.subn(pattern, replacement, code)
        assert count == 1, pattern
    return code


def row(step: int, kind: str = "train", **figures: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "loss": 5 - step / 10, **figures}


def training(run: Path) -> list[Callable[[], None]]:
    """What happens to the run's folder between two looks of the follower."""

    def write(*rows: dict[str, Any], resumed_at: int = 99) -> None:
        writer = MetricsWriter(run / "metrics.jsonl", resumed_at)
        for each in rows:
            writer.write(each)

    def cut() -> None:
        with open(run / "metrics.jsonl", "ab") as file:
            file.write(b'{"kind": "train", "st')

    def finish() -> None:
        write(row(4))
        (run / "training.json").write_text("{}")

    return [
        lambda: write(row(2), row(2, "validation", sources={"web": 1.0}), row(2, "event", text="skipped")),
        cut,
        lambda: write(row(2), resumed_at=1),
        lambda: write(row(2, "validation"), row(3)),
        finish,
    ]


@pytest.mark.parametrize("to_mlflow", [False, True])
def test_the_follower_logs_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_mlflow: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": {"max_steps": 4}}}))
    MetricsWriter(tmp_path / "metrics.jsonl", 0).write(row(1))
    told: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []

    def log(figures: dict[str, float], step: int) -> None:
        told.append((step, figures))

    fake = SimpleNamespace(init=lambda **_: None, start_run=lambda **_: None, log=log, log_metrics=log)
    fake.finish = fake.end_run = lambda: ended.append(True)
    monkeypatch.setitem(sys.modules, "mlflow" if to_mlflow else "wandb", fake)
    monkeypatch.setattr(sys, "argv", ["follow.py", str(tmp_path)])
    events = iter(training(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: next(events)())
    exec(follower(to_mlflow), {})
    losses = [(step, name, figure) for step, figures in told for name, figure in figures.items() if "loss" in name]
    assert losses == [
        (1, "train/loss", 4.9),
        (2, "train/loss", 4.8),
        (2, "validation/loss", 4.8),
        (3, "train/loss", 4.7),
        (4, "train/loss", 4.6),
    ]
    assert ended == [True]


@pytest.mark.parametrize(
    "model", [{}, {"tie_embeddings": False}, {"architecture": "llama", "kv_heads": 1}, {"architecture": "qwen3"}]
)
def test_a_gguf_file_holds_the_exported_model(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    made = train_and_evaluate(prepared, prepared.run(model={**model, "layers": 2, "width": 32}))
    folder = export(made.training, made.evaluation).model_dir
    monkeypatch.setattr(sys, "argv", ["to_gguf.py", str(folder), str(tmp_path / "model.gguf")])
    exec(program("gguf.md"), {})
    file = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor.data for tensor in file.tensors}
    weights = {
        name: weight.detach().numpy()
        for name, weight in trained_model(made.run, made.training.checkpoint).named_parameters()
    }
    assert sum(data.size for data in found.values()) == sum(weight.size for weight in weights.values())
    [embedding] = [weight for name, weight in weights.items() if "wte" in name or "embed_tokens" in name]
    assert np.array_equal(found["token_embd.weight"], embedding)
    assert file.fields["general.architecture"].contents() == model.get("architecture", "gpt2")
    pieces = file.fields["tokenizer.ggml.tokens"].contents()
    assert pieces[:6] == ["<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>"]
    assert len(pieces) == len(embedding)


def test_a_gguf_file_holds_a_byte_level_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(write_corpus(tmp_path / "corpus"), tmp_path / "store", max_steps=2)
    byte_bpe = config.tokenizer.model_copy(update={"model_type": "byte_bpe"})
    prepared = prepare(config.model_copy(update={"tokenizer": byte_bpe}))
    made = train_and_evaluate(prepared, prepared.run(model={"architecture": "llama"}))
    folder = export(made.training, made.evaluation).model_dir
    monkeypatch.setattr(sys, "argv", ["to_gguf.py", str(folder), str(tmp_path / "model.gguf")])
    exec(program("gguf.md"), {})
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = json.loads((folder / "tokenizer.json").read_bytes())["model"]
    pieces = fields["tokenizer.ggml.tokens"].contents()
    assert {piece: number for number, piece in enumerate(pieces)} == said["vocab"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in said["merges"]]
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.token_type"].contents()[:7] == [3] * 6 + [1]


@pytest.mark.filterwarnings("default")  # of a library's own
def test_the_harness_scores_an_export_much_as_we_do(
    prepared: Prepared, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = export(trained.training, trained.evaluation).model_dir
    texts = list(dataset_texts(prepared.dataset.folder))
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": each.text}) + "\n" for each in texts))
    monkeypatch.setattr(sys, "argv", ["harness.py", str(folder), str(path)])
    names: dict[str, Any] = {}
    exec(program("lm-eval.md"), names)
    assert names["results"]["bits_per_byte,none"] == pytest.approx(
        score_texts(folder, texts).total.bits_per_byte, rel=0.05
    )
