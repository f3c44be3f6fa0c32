"""Ctrl-C at every stage: one line, soon, nothing left, and the same command continues.

All commands of a kind share one store, so each one begins where the one before was interrupted.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, wait_until, write_corpus
from tests.terminal.conftest import CTRL_C, LINE, Start, Terminal, assert_interrupted

pytestmark = pytest.mark.terminal

Moment = Callable[[Terminal, Path], bool]


def there(pattern: str) -> Moment:
    """Something of this name is in the store."""
    return lambda _, store: any(store.glob(pattern))


STAGES: dict[str, Moment] = {
    "import": lambda terminal, _: terminal.hears_signals(),
    "tokenizer": there("tokenizers/.tmp-*"),
    "tokenizing": there("shards/[!.]*"),
    "launch": there("runs/*/config.json"),
    "training": there("runs/*/metrics.jsonl"),
    "evaluation": there("runs/*/training.json"),
    "export": there("runs/*/evaluation.json"),
    "report": there("runs/*/model"),
}
FLOW_STAGES: dict[str, Moment] = {
    "import": STAGES["import"],
    "server": lambda terminal, _: terminal.runs("uvicorn"),
    "training": STAGES["training"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    write_corpus(folder / "corpus", documents=2_000)
    return folder


def command(folder: Path, module: str, **changes: object) -> list[object]:
    flags = {"--corpus.paths": folder / "corpus", "--corpus.chunk_bytes": 1000, "--store": folder / module}
    flags |= {"--tokenizer.vocab_size": 500, "--dataset.block_size": 16, "--model.layers": 1, "--model.width": 16}
    flags |= {"--model.heads": 2, "--train.batch_size": 4, "--train.max_steps": 200, "--train.log_every": 1}
    flags |= {f"--train.{name}": value for name, value in changes.items()}
    return ["-m", *module.split(), *(word for pair in flags.items() for word in pair)]


def assert_clean(store: Path) -> None:
    """No temporary file, no lock that somebody holds."""
    assert not list(store.rglob(".tmp-*"))
    for lock in store.rglob("*.lock"):
        assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 0, lock


@pytest.mark.parametrize(
    ("module", "stage"),
    [("lmcore pretrain", stage) for stage in STAGES] + [("flows.pretrain", stage) for stage in FLOW_STAGES],
)
def test_ctrl_c_is_one_line_and_leaves_nothing(start: Start, folder: Path, module: str, stage: str) -> None:
    store = folder / module
    terminal = start(*command(folder, module))
    moment = (STAGES if module.startswith("lmcore") else FLOW_STAGES)[stage]
    terminal.wait_until(lambda: moment(terminal, store))
    assert_interrupted(terminal.end(CTRL_C, CTRL_C, CTRL_C))
    assert_clean(store)


@pytest.mark.parametrize("module", ["lmcore pretrain", "flows.pretrain"])
def test_the_same_command_continues(start: Start, folder: Path, module: str) -> None:
    ended = start(*command(folder, module)).end()
    assert ended.status == 0, ended.screen
    result = json.loads(ended.screen.strip().splitlines()[-1]) if module == "lmcore pretrain" else None
    assert result is None or result["step"] == 200
    assert_clean(folder / module)


def test_ctrl_c_amid_set_up_is_one_line(start: Start, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    terminal = start("-C", tmp_path, "demo", program="make", PYTHON=sys.executable)
    terminal.wait_until((tmp_path / ".venv" / "pyvenv.cfg").exists)
    screen = terminal.end(CTRL_C).screen
    assert screen.splitlines().count(LINE) == 1, screen
    assert "Traceback" not in screen


@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 75), ("HUP", 75)])
def test_timeout_is_one_line_too(start: Start, folder: Path, name: str, status: int) -> None:
    """timeout sends its signal to the whole group, so the server needs a session of its own."""
    words = ["--preserve-status", f"--signal={name}", "5", sys.executable, *command(folder, "flows.pretrain")]
    assert_interrupted(
        start(*words, "--run", f"timeout-{name}", "--train.max_steps", 10**6, program="timeout").end(), status
    )


def test_a_job_that_ignores_ctrl_c_ends_by_sigterm(folder: Path) -> None:
    """A shell has the jobs of a script ignore SIGINT: that holds for a command and what it starts."""
    words = [str(word) for word in (sys.executable, *command(folder, "lmcore pretrain"), "--train.max_steps", 10**6)]
    script = 'trap "" INT; exec "$@"'
    with subprocess.Popen(["sh", "-c", script, "sh", *words], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as job:
        runs = folder / "lmcore pretrain" / "runs"
        before = len(list(runs.iterdir()))
        wait_until(lambda: len(list(runs.glob("*/metrics.jsonl"))) > before, "the training", 180)
        os.kill(job.pid, signal.SIGINT)
        time.sleep(0.5)
        assert job.poll() is None
        job.terminate()
        assert job.stderr is not None
        assert job.stderr.read().count(LINE) == 1
    assert job.returncode == 75


@pytest.mark.parametrize("module", ["lmcore pretrain", "flows.pretrain"])
def test_a_terminal_that_goes_away_ends_the_training_which_saves(start: Start, tmp_path: Path, module: str) -> None:
    """The bar can no longer be drawn then. That is not a failure of the training, which would be tried again."""
    write_corpus(tmp_path / "corpus")
    terminal = start(*command(tmp_path, module, max_steps=10**6, checkpoint_every=10**6))
    found = (tmp_path / module).glob
    terminal.wait_until(lambda: any(b"loss" in path.read_bytes() for path in found("runs/*/metrics.jsonl")))
    terminal.vanish()
    assert len(list(found("runs/*/checkpoints/step-*"))) == 1
    assert_clean(tmp_path / module)
