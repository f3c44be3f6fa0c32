"""Losses of a training that was killed again and again, on those of one that was not."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import pyplot

from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run
from lmcore.store.artifacts import find_artifact
from tests.benchmarks.kill_training import STEPS, Train, truncate_newest

matplotlib.use("agg")
MOST_KILLS, NEAREST, FURTHEST = 8, 12, 18
"""Kills, and the steps that a start may make."""
SIGKILL, TRUNCATED = "SIGKILL", "SIGKILL, newest checkpoint truncated"
MARKERS = {SIGKILL: "x", TRUNCATED: "D"}


class Start(NamedTuple):
    """What one start of a run made."""

    steps: list[int]
    losses: list[float]
    end: str = ""
    """What ended it, if it is not the run's end."""


def draw_losses(campaign: Train, picture: Path) -> None:
    undisturbed = _start(campaign.undisturbed(1), 0)
    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    axes.plot(undisturbed.steps, undisturbed.losses, color="0.8", linewidth=7, label="never interrupted")
    for number, start in enumerate(_starts(campaign), 1):
        axes.plot(start.steps, start.losses, linewidth=1.5, label=f"start {number}, from step {start.steps[0]}")
        if start.end:
            axes.plot(start.steps[-1], start.losses[-1], MARKERS[start.end], color="black", zorder=9)
    for name, marker in MARKERS.items():
        axes.plot([], [], marker, color="black", label=name)
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token", title="Killed and started again: the same losses")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _starts(campaign: Train) -> Iterator[Start]:
    """Of one run, killed some times: every start makes again what its newest whole checkpoint does not have."""
    draw, first = random.Random(0), 0
    for number in range(MOST_KILLS):
        run = campaign.prepared("drawn", nproc=1)
        first = _newest_whole(run)
        if first + FURTHEST > STEPS:
            break
        campaign.kill_at(run, step=first + draw.randint(NEAREST, FURTHEST))
        is_cut = number % 3 == 2 and truncate_newest(run, draw)
        yield _start(run, first, TRUNCATED if is_cut else SIGKILL)
    run = campaign.prepared("drawn", nproc=1)
    first = _newest_whole(run)
    campaign.run_to_end(run)
    yield _start(run, first)


def _newest_whole(run: Run) -> int:
    """The step that the next start goes on from."""
    return max(
        (
            int(path.name.removeprefix("step-"))
            for path in run.checkpoints.glob("step-*")
            if find_artifact(path, keep_damaged=True)
        ),
        default=0,
    )


def _start(run: Run, first: int, end: str = "") -> Start:
    rows = [row for row in read_metrics(run.metrics) if row["kind"] == "train" and row["step"] > first]
    return Start([row["step"] for row in rows], [row["loss"] for row in rows], end)
