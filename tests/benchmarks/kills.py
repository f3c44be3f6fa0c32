"""Kills that must cost nothing but time: python tests/benchmarks/kills.py CAMPAIGN [--kills 200] [--seed 0]

A campaign starts a command of this package, ends its process group by SIGKILL at a moment that the seed draws, runs
the same command again, and compares what is there with what an undisturbed one leaves. Only kills that hit the work
count; others are drawn again. The tests make a few of the same kills. Exit status 1 unless all were survived.
The campaigns:

    tokenize   python -m lmcore tokenize, between its first chunk and the manifest
    train      python -m lmcore train, between its first step and its result; kill_training.py says more.
               --picture FILE.png draws a killed and an undisturbed loss curve
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kill:
    """One that hit, and what was wrong after the next run."""

    kinds: set[str]
    """What was going on at that moment, or was done after it, among the campaign's kinds."""
    problems: list[str]


class Campaign(Protocol):
    """Made with an empty folder of its own."""

    hits: str
    """What a kill that counts does, in words."""
    kinds: tuple[str, ...]
    """Of kills, as the summary counts them."""
    promise: str
    """What every kill must leave, in words."""

    def kill(self, draw: random.Random, at_most: int) -> list[Kill]:
        """Begin anew, kill once or more, run to the end: the kills before which the work had not ended."""


def kills(campaign: Campaign, count: int, draw: random.Random) -> Iterator[Kill]:
    """What came of ``count`` kills that hit."""
    while count:
        found = campaign.kill(draw, count)
        count -= len(found)
        yield from found


def summary(campaign: Campaign, found: list[Kill], seed: int) -> str:
    """One line."""
    kinds = ", ".join(f"{sum(kind in kill.kinds for kill in found)} {kind}" for kind in campaign.kinds)
    lost = sum(bool(kill.problems) for kill in found)
    promise = f"{lost} LEFT SOMETHING ELSE" if lost else campaign.promise
    return f"{len(found)} kills {campaign.hits} ({kinds}), {promise} (seed {seed})"


def run_and_kill(command: list[str], moment: Callable[[], bool], seconds: float) -> int:
    """Exit status of a command that is killed ``seconds`` after ``moment`` has come, if it has not ended by then."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    while child.poll() is None and not moment():
        time.sleep(0.001)
    time.sleep(seconds)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


class Tokenize:
    """Some 80 chunks, which take a second."""

    hits = "hit a running tokenizer"
    kinds: tuple[str, ...] = ("amid a write",)
    promise = "all survived, same dataset id, 0 orphan files"

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        corpus, draw = folder / "corpus.txt", random.Random(0)
        lines = ("".join(draw.choices("言語モデルを学習する。 data", k=draw.randint(5, 60))) for _ in range(1000))
        corpus.write_text("\n".join(lines), encoding="utf-8")
        self.command = [sys.executable, "-m", "lmcore", "prepare", "--tokenizer.vocab_size=400"]
        self.command += [f"--corpus.paths={corpus}", "--corpus.chunk_bytes=1000", f"--store={self.store}"]
        subprocess.run(self.command, cwd=ROOT, check=True, capture_output=True)
        self.undisturbed = self._files()
        self.chunks = self._count("shards/[!.]*")

    def kill(self, draw: random.Random, at_most: int) -> list[Kill]:
        self._forget()
        chunks, seconds = draw.randint(0, self.chunks), draw.uniform(0, 0.05)
        status = run_and_kill(self.command, lambda: self._has_begun(chunks), seconds)
        if status == 0 or self._count("datasets/*/manifest.json"):
            return []
        kinds = {"amid a write"} if self._count("**/.tmp-*") else set()
        problems = [] if status == -signal.SIGKILL else [f"the command ended with status {status} by itself"]
        again = subprocess.run(self.command, cwd=ROOT, capture_output=True, text=True, check=False)
        if again.returncode:
            problems.append(f"the next run ended with status {again.returncode}: {again.stderr}")
        return [Kill(kinds, problems + list(self._differences()))]

    def _forget(self) -> None:
        """Everything but the tokenizer."""
        for name in ("shards", "datasets"):
            shutil.rmtree(self.store / name)
        (self.store / "index.sqlite").unlink(missing_ok=True)

    def _has_begun(self, chunks: int) -> bool:
        return (self.store / "shards").exists() and self._count("shards/[!.]*") >= chunks

    def _count(self, pattern: str) -> int:
        return len(list(self.store.glob(pattern)))

    def _files(self) -> dict[str, bytes]:
        """All but the index, which holds times."""
        paths = [path for path in self.store.rglob("*") if path.is_file() and path.name != "index.sqlite"]
        return {str(path.relative_to(self.store)): path.read_bytes() for path in paths}

    def _differences(self) -> Iterator[str]:
        files = self._files()
        yield from (f"orphan file {name}" for name in sorted(files.keys() - self.undisturbed.keys()))
        for name, content in self.undisturbed.items():
            if files.get(name) != content:
                yield f"{name} is {'another' if name in files else 'missing'}"


def _train(folder: Path) -> Campaign:
    from tests.benchmarks.kill_training import Train  # after main() has said where tests is

    return Train(folder, two_ranks_every=40)


CAMPAIGNS: dict[str, Callable[[Path], Campaign]] = {"tokenize": Tokenize, "train": _train}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.benchmarks.bench import sized

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--kills", type=int, default=sized(200, 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="of the last run, for train")
    options = parser.parse_args()
    found = []
    with TemporaryDirectory() as folder:
        campaign = CAMPAIGNS[options.campaign](Path(folder))
        for number, kill in enumerate(kills(campaign, options.kills, random.Random(options.seed)), 1):
            found.append(kill)
            for problem in kill.problems:
                print(f"kill {number}: {problem}", flush=True)
        if options.picture:
            campaign.draw(options.picture)  # type: ignore[attr-defined]
    print(summary(campaign, found, options.seed))
    sys.exit(any(kill.problems for kill in found))


if __name__ == "__main__":
    main()
