"""Trainings that are killed, several times each, and must end as one that was not: for kills.py and the tests.

What is killed is the process tree of ``python -m lmcore train RUN``. To start one costs seconds of imports, so most are
forked from a server that has done them (``multiprocessing``'s forkserver) and has not computed anything; in the fork
the same command runs from its beginning. Some are started cold, as a user does, and some train with two ranks, under
torchrun: to start those takes ten seconds. A kill counts when it ended a process that had made a step and not yet its
result.

Moments: any; soon after a checkpoint's temporary folder is seen; right after one was renamed into place. Before
some of the next starts, a file of the newest checkpoint is truncated.
"""

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from lmcore.corpus.listing import open_corpus
from lmcore.dataset.tokenization import tokenize
from lmcore.runs.metrics import read_metrics
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run
from lmcore.settings.config import RunConfig
from lmcore.tokenizer.make import make_tokenizer
from tests.benchmarks.kills import ROOT, Kill

STEPS = 100
MOST_KILLS = 4
"""Of one run."""
SHARE_TRUNCATED, SHARE_COLD = 0.3, 0.1
MOMENTS = {"any": 4, "write": 4, "rename": 2}
MEASURED = {"tokens_per_second", "memory_bytes", "data_wait_share", "mfu", "seconds", "row_seconds", "row_waited"}
"""What a clock says, and differs between any two trainings."""
INTERRUPTED, TRUNCATED, COLD, TWO_RANKS = (
    "inside a checkpoint write",
    "truncated newest",
    "started cold",
    "on two ranks",
)

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["lmcore.training.train", "lmcore.runs.launch", "transformers.models.gpt2.modeling_gpt2"])


class Trainer:
    """A running ``python -m lmcore train``."""

    def __init__(self, folder: Path, is_cold: bool) -> None:
        log = folder / "output.txt"
        self.status: Callable[[], int | None]
        """None while it runs."""
        if is_cold:
            with open(log, "wb") as output:
                command = [sys.executable, "-m", "lmcore", "train", str(folder)]
                child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
            self.pid, self.status = child.pid, child.poll
        else:
            fork = _forks.Process(target=_train_in_fork, args=(folder, log))
            fork.start()
            assert fork.pid is not None
            self.pid, self.status = fork.pid, lambda: fork.exitcode

    def kill(self) -> list[int]:
        """End the whole tree; the processes that are still there after a while."""
        tree = [self.pid, *_descendants(self.pid)]
        for pid in tree:
            _kill(pid)
        self.wait()
        return _left_after_a_while(tree)

    def wait(self) -> int:
        """Exit status."""
        while (status := self.status()) is None:
            time.sleep(0.001)
        return status


def _train_in_fork(folder: Path, log: Path) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(ROOT)
    sys.argv = ["lmcore", "train", str(folder)]
    runpy.run_module("lmcore", run_name="__main__", alter_sys=True)


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    mine = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [*mine, *(pid for child in mine for pid in _descendants(child))]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _left_after_a_while(pids: list[int]) -> list[int]:
    for _ in range(500):
        pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not pids:
            break
        time.sleep(0.01)
    return pids


class Train:
    """Some 100 steps, which take a second: a checkpoint every 7, a validation every 20, dropout on."""

    hits = "hit a running trainer"
    kinds: tuple[str, ...] = (INTERRUPTED, TRUNCATED, COLD, TWO_RANKS)
    promise = "all bit-equal"

    def __init__(self, folder: Path, two_ranks_every: int = 0) -> None:
        """Of ``two_ranks_every`` runs one trains with two ranks; none if it is 0."""
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of everything that is started here; threads wait for each other
        self._config = _config(folder)
        corpus, store = open_corpus(self._config)
        self._tokenizer = make_tokenizer(self._config.tokenizer, self._config.corpus, corpus, store)
        self._dataset = tokenize(self._config.corpus, corpus, self._tokenizer, store)
        self._numbers, self._two_ranks_every = count(1), two_ranks_every
        self._undisturbed: dict[int, Run] = {}
        self._seconds: dict[int, float] = {}
        """From the first step to the last, by the number of ranks."""

    def kill(self, draw: random.Random, at_most: int) -> list[Kill]:
        number, found = next(self._numbers), list[Kill]()
        nproc = 2 if self._two_ranks_every and number % self._two_ranks_every == 0 else 1
        undisturbed, name = self.undisturbed(nproc), f"killed-{number}"
        for _ in range(min(at_most, draw.randint(1, MOST_KILLS))):
            found += self._kill_once(self.prepared(name, nproc), draw)
        run = self.prepared(name, nproc)
        problems = self.run_to_end(run) + list(differences(run, undisturbed))
        if not found and problems:
            raise AssertionError(f"a run that nobody killed went wrong: {problems}")
        if found:
            found[-1].problems.extend(problems)
        if not problems:
            shutil.rmtree(run.folder)
        return found

    def prepared(self, name: str, nproc: int) -> Run:
        """The run of that name; what dead processes left in it is swept, as by every start of the pipeline."""
        train = self._config.train.model_copy(update={"nproc": nproc})
        config = self._config.model_copy(update={"run": name, "train": train})
        return prepare_run(config, self._dataset, self._tokenizer, self._config.store)

    def undisturbed(self, nproc: int) -> Run:
        """A run that nothing interrupted."""
        if nproc not in self._undisturbed:
            run = self.prepared(f"undisturbed-{nproc}", nproc)
            trainer = Trainer(run.folder, is_cold=False)
            _wait_for_a_step(run, trainer, before=0)
            start = time.perf_counter()
            while trainer.status() is None and _last_row(run).get("step", 0) < STEPS:
                time.sleep(0.005)
            self._seconds[nproc] = time.perf_counter() - start
            if status := trainer.wait():
                raise RuntimeError(f"an undisturbed run ended with status {status}: {_output(run)}")
            self._undisturbed[nproc] = run
        return self._undisturbed[nproc]

    def run_to_end(self, run: Run) -> list[str]:
        """What was wrong with that."""
        status = Trainer(run.folder, is_cold=False).wait()
        self.prepared(run.folder.name, run.config.train.nproc)
        orphans = [path.name for path in run.checkpoints.iterdir() if not path.name.startswith(("step-", "bad-step-"))]
        problems = [f"orphan {name}" for name in orphans]
        if status:
            problems.append(f"the last start ended with status {status}: {_output(run)}")
        return problems

    def _kill_once(self, run: Run, draw: random.Random) -> list[Kill]:
        """Nothing if the run came to its end first."""
        nproc = run.config.train.nproc
        kinds = {TWO_RANKS} if nproc > 1 else set()
        kinds |= {COLD} if draw.random() < SHARE_COLD else set()
        before = _inode(run.metrics)
        trainer = Trainer(run.folder, is_cold=COLD in kinds)
        _wait_for_a_step(run, trainer, before)
        time.sleep(draw.uniform(0, self._seconds[nproc] * (1 - newest_step(run) / STEPS)))
        _wait_for_moment(run, trainer, draw)
        left = trainer.kill()
        if trainer.status() == 0 or (run.folder / "training.json").exists():
            return []
        kinds |= {INTERRUPTED} if _half_written(run) else set()
        kinds |= {TRUNCATED} if draw.random() < SHARE_TRUNCATED and truncate_newest(run, draw) else set()
        problems = [f"process {pid} is still there" for pid in left]
        if trainer.status() not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            problems.append(f"the trainer ended with status {trainer.status()} by itself: {_output(run)}")
        return [Kill(kinds, problems)]

    def kill_at(self, run: Run, step: int) -> None:
        """Start the run, and kill it when it has written a row of ``step``."""
        before = _inode(run.metrics)
        trainer = Trainer(run.folder, is_cold=False)
        _wait_for_a_step(run, trainer, before)
        while trainer.status() is None and _last_row(run).get("step", 0) < step:
            time.sleep(0.001)
        trainer.kill()

    def draw(self, picture: Path) -> None:
        """Losses of a killed and an undisturbed run."""
        from tests.benchmarks.kill_picture import draw_losses

        draw_losses(self, picture)


def _config(folder: Path) -> RunConfig:
    corpus, draw = folder / "corpus.txt", random.Random(0)
    lines = ("".join(draw.choices("言語モデルを学習する。 data", k=draw.randint(5, 60))) for _ in range(500))
    corpus.write_text("\n".join(lines), encoding="utf-8")
    train = {"max_steps": STEPS, "batch_size": 4, "log_every": 1, "validate_every": 20, "checkpoint_every": 7}
    return RunConfig.model_validate(
        {
            "store": folder / "store",
            "corpus": {"paths": [str(corpus)]},
            "tokenizer": {"vocab_size": 400},
            "dataset": {"block_size": 16},
            "model": {"layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
            "train": {**train, "device": "cpu", "learning_rate": 1e-2},
        }
    )


# --- a run's folder ---


def differences(run: Run, other: Run) -> Iterator[str]:
    """Between two finished runs: weights, optimizers, random state, all else in the last checkpoint, and metrics."""
    mine, others = (each.checkpoints / f"step-{newest_step(each):08d}" for each in (run, other))
    files = [sorted(path.name for path in folder.glob("*")) for folder in (mine, others)]
    if mine.name != others.name or files[0] != files[1]:
        yield f"the newest checkpoint is {mine.name} of {files[0]}, not {others.name} of {files[1]}"
        return
    yield from (
        f"{path.name} of {mine.name} is another"
        for path in sorted(mine.glob("*.safetensors"))
        if path.read_bytes() != (others / path.name).read_bytes()
    )
    if _state(mine) != _state(others):
        yield f"the state of {mine.name} is {_state(mine)}, not {_state(others)}"
    rows = [list(map(_unmeasured, read_metrics(each.metrics))) for each in (run, other)]
    if rows[0] != rows[1]:
        missing = [row for row in rows[1] if row not in rows[0]]
        yield f"metrics.jsonl has {len(rows[0])} rows, not {len(rows[1])}; the first missing ones are {missing[:2]}"


def _state(checkpoint: Path) -> dict[str, Any]:
    return _unmeasured(json.loads((checkpoint / "state.json").read_bytes()))


def _unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MEASURED}


def newest_step(run: Run) -> int:
    return max((int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*")), default=0)


def truncate_newest(run: Run, draw: random.Random) -> bool:
    """Cut a file of the newest checkpoint somewhere. False when there is no checkpoint."""
    if not (step := newest_step(run)):
        return False
    file = draw.choice(sorted((run.checkpoints / f"step-{step:08d}").iterdir()))
    os.truncate(file, draw.randrange(file.stat().st_size))
    return True


def _output(run: Run) -> str:
    """What the last start wrote."""
    return (run.folder / "output.txt").read_text()


def _half_written(run: Run) -> list[str]:
    """Temporary folders of checkpoints in the making."""
    try:
        names = os.listdir(run.checkpoints)
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(".tmp-") and "-removed-" not in name]


# --- moments ---


def _last_row(run: Run) -> dict[str, Any]:
    return (read_metrics(run.metrics) or [{}])[-1]


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def _wait_for_a_step(run: Run, trainer: Trainer, before: int) -> None:
    """Until ``trainer`` has made a step. A start replaces the file of rows, and then appends to it."""
    while trainer.status() is None and _inode(run.metrics) in (0, before):
        time.sleep(0.001)
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    while trainer.status() is None and run.metrics.stat().st_size <= size:
        time.sleep(0.001)


def _wait_for_moment(run: Run, trainer: Trainer, draw: random.Random) -> None:
    [moment] = draw.choices(list(MOMENTS), list(MOMENTS.values()))
    step, seconds = newest_step(run), draw.uniform(0, {"any": 0, "write": 0.01, "rename": 0.003}[moment])
    has_come: dict[str, Callable[[], bool]] = {
        "any": lambda: True,
        "write": lambda: bool(_half_written(run)),
        "rename": lambda: newest_step(run) > step,
    }
    while trainer.status() is None and not has_come[moment]():
        time.sleep(0.0002)
    time.sleep(seconds)
