"""Training loops in processes of their own, which take turns; rounds.py is their side."""

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import HERE, with_lmcore

Figures = dict[str, float]


class Loop:
    """A loop of a script that has made its first steps and stands still."""

    def __init__(self, name: str, command: list[Any], spec: dict[str, Any], folder: Path) -> None:
        self._name, self._log = name, folder / f"{name}.log"
        start = time.perf_counter()
        self._child = _start(command, spec, folder, name, self._log)
        while not (about := self._read()).get("ready"):
            pass  # a checkpoint was saved
        self.about: Figures = about
        self.seconds_to_first_steps = time.perf_counter() - start

    def round(self) -> Figures:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        figures: Figures = {}
        while "wall" not in figures:
            figures |= self._read()
        return figures

    def end(self) -> None:
        self._child.communicate()

    def _read(self) -> Figures:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            raise SystemExit(f"{self._name} ended by itself:\n{self._log.read_text()[-4000:]}")
        figures: Figures = json.loads(line)
        return figures


def told(name: str, command: list[Any], spec: dict[str, Any], folder: Path) -> Figures:
    """What a loop says that has no rounds."""
    output, _ = _start(command, spec, folder, name, folder / f"{name}.log").communicate()
    if not output:
        raise SystemExit(f"{name} said nothing:\n{(folder / f'{name}.log').read_text()[-4000:]}")
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def _start(command: list[Any], spec: dict[str, Any], folder: Path, name: str, log: Path) -> "subprocess.Popen[str]":
    """``command SPEC.json``. Temporary files of its own: there are the locks by which trainings take turns on a GPU."""
    path, temporary = folder / f"{name}.json", folder / f"{name}.tmp"
    path.write_text(json.dumps(spec))
    temporary.mkdir(exist_ok=True)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    with open(log, "wb") as errors:
        return subprocess.Popen(
            [*map(str, command), str(path)],
            cwd=HERE,
            env={**with_lmcore(), **caches, "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def by_turns(loops: dict[str, Loop], rounds: int) -> dict[str, list[Figures]]:
    """The figures of every round of every loop, one round of each after the other; then the loops end."""
    found: dict[str, list[Figures]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            found[name].append(loop.round())
    for loop in loops.values():
        loop.end()
    return found


def median(rounds: list[Figures], figure: str) -> float:
    return statistics.median(each[figure] for each in rounds)


def median_ratio(rounds: list[Figures], base: list[Figures], figure: str) -> float:
    """Of what was measured in the same turn."""
    return statistics.median(mine[figure] / other[figure] for mine, other in zip(rounds, base, strict=True))
