"""Every section of the benchmarks runs at the smoke size, so that none breaks unnoticed.

orchestration.py is left to people: each of its sections starts, outlasts and kills servers, for minutes.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_corpus

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Corpora as the benchmarks take them."""
    folder = tmp_path_factory.mktemp("texts")
    lines = (write_corpus(folder / "corpus", 200) / "text.txt").read_text(encoding="utf-8").splitlines()
    rows = [
        {"id": f"{'manuals' if number % 3 else 'news'}:{number}", "text": line} for number, line in enumerate(lines)
    ]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / "text.jsonl").write_bytes(content)
    (folder / "text.jsonl.gz").write_bytes(gzip.compress(content))
    return {"jsonl": str(folder / "text.jsonl"), "gz": str(folder / "text.jsonl.gz"), "text": str(folder / "corpus")}


def run(work: Path, script: str, *arguments: str) -> str:
    """What a script prints at the smoke size. Its folders are in ``work``."""
    environment = {**os.environ, "LM_BENCHMARKS": str(work), "PYTHONPATH": str(BENCHMARKS.parents[1])}
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--smoke"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sections(script: str) -> list[str]:
    """The names in a script's SECTIONS."""
    found = re.search(r"^SECTIONS.*?in \(([\w, ]+)\)", (BENCHMARKS / script).read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].split(", ")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("section", sections("training.py"))
def test_training(work: Path, section: str) -> None:
    assert "| --- |" in run(work, "training.py", section)


@pytest.mark.parametrize("section", sections("data.py"))
def test_data(work: Path, texts: dict[str, str], section: str) -> None:
    assert "| --- |" in run(work, "data.py", texts["jsonl"], section)


def test_gate(work: Path) -> None:
    assert "a creep of 0.002 a challenger" in run(work, "gate.py")


def test_registry(work: Path) -> None:
    assert "| gc --dry-run | 1 MB |" in run(work, "registry.py")


def test_retraining(work: Path, texts: dict[str, str]) -> None:
    assert "from scratch on everything" in run(work, "retraining.py", texts["gz"])


def test_recipe(work: Path, texts: dict[str, str]) -> None:
    assert "| batch4 |" in run(work, "recipe.py", "batch4", "--corpus", texts["text"])


@pytest.mark.parametrize("campaign", ["tokenize", "train"])
def test_kills(work: Path, campaign: str) -> None:
    assert run(work, "kills.py", campaign)
