"""What a person sees on a terminal: a live bar for each stage, through both doors, and the lines above it."""

import os
import re
import sys
from pathlib import Path

import pexpect
import pytest

from tests.conftest import REPOSITORY

STAGES = ("corpus", "tokenizer", "tokenizing", "training", "evaluating", "export", "report")


def screen(module: list[str], corpus: Path, folder: Path, **environment: str) -> tuple[str, int]:
    """All that a run writes to a terminal of 100 columns, control sequences included, and its exit status."""
    flags = {"--corpus.paths": corpus, "--store": folder / "store", "--tokenizer.vocab-size": 400}
    flags |= {"--dataset.block-size": 16, "--model.layers": 1, "--model.width": 16, "--model.heads": 2}
    flags |= {"--train.max-steps": 20, "--train.batch-size": 4, "--train.log-every": 5}
    words = [*module, *(str(word) for pair in flags.items() for word in pair)]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    settings |= {"PREFECT_HOME": str(folder / "home"), "TERM": "xterm", **environment}
    child = pexpect.spawn(
        sys.executable, words, cwd=REPOSITORY, env=settings, encoding="utf-8", dimensions=(40, 100), timeout=300
    )
    text = child.read()
    child.close()
    return text, child.exitstatus


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("module", [["-m", "lmcore", "pretrain"], ["-m", "flows.pretrain"]], ids=["plain", "prefect"])
def test_each_stage_has_a_bar(corpus: Path, tmp_path: Path, module: list[str]) -> None:
    text, status = screen(module, corpus, tmp_path)
    seen = plain(text)
    assert status == 0, seen
    for stage in STAGES:
        assert re.search(rf"\r{stage} +━+ \d:\d\d:\d\d", seen), (stage, seen)
    assert re.search(r"training +━+ 0:\d\d:\d\d step \d+ of 20", seen)
    assert "what next" in seen
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is hidden"


def test_a_terminal_that_knows_ascii_only_gets_bars_of_it(corpus: Path, tmp_path: Path) -> None:
    text, status = screen(["-m", "lmcore", "pretrain"], corpus, tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert status == 0, text
    assert re.search(r"\rtraining +-+ \d:\d\d:\d\d", plain(text))


def test_a_terminal_without_a_cursor_gets_lines(corpus: Path, tmp_path: Path) -> None:
    text, status = screen(["-m", "lmcore", "pretrain"], corpus, tmp_path, TERM="dumb")
    assert status == 0, text
    lines = text.splitlines()
    assert [line for line in lines if line.endswith(": started")] == [f"{stage}: started" for stage in STAGES]
    assert "\x1b" not in text
