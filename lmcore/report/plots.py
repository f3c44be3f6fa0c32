"""Pictures: the losses of one run, the losses of several runs in one picture, and the comparisons of a gate."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.errors import ConfigError, StoreError
from lmcore.registry.versions import Event
from lmcore.retraining.gate import Comparison
from lmcore.runs.metrics import by_step, read_metrics
from lmcore.store.files import write_file
from lmcore.store.json_files import Row

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces its font cache, and each font that is not here

_COLORS = {"train": "#7da7d9", "validation": "#c0392b"}
_VERDICTS = {"met": "#2e8b57", "not met": "#c0392b", "shown only": "#8a8a8a"}
_DECISIONS = {"promoted": "#2e8b57", "refused": "#c0392b", "rolled back": "#8a8a8a"}
_MOST_NAMES = 8
"""Most versions that are named below a picture."""
_LIMIT = {"color": "#444444", "linestyle": "--"}
_MOST_POINTS = 1000
"""Most points of a curve. A longer curve is drawn as means of neighbouring points."""
_STYLE: Any = {
    "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic"],
    "text.parse_math": False,  # $ is a plain character
}


def loss_picture(rows: list[Row], title: str) -> bytes:
    """Training and validation loss of one run against tokens, as PNG."""
    with _loss_axes(title) as axes:
        for kind, color in _COLORS.items():
            _curve(axes, rows, kind, color=color, linewidth=1.4, label=kind)
        return _png(axes)


def compare_losses(runs: dict[str, list[Row]]) -> bytes:
    """The losses of several runs as PNG, one colour a run: training as a thin line, validation with dots."""
    with _loss_axes("pale: training loss, with dots: validation loss") as axes:
        for number, (name, rows) in enumerate(runs.items()):
            # Earlier runs have wider lines, so that equal curves stay visible.
            style = {"color": f"C{number % 10}", "linewidth": 1.2 + 1.6 * min(len(runs) - 1 - number, 2)}
            _curve(axes, rows, "train", alpha=0.45, **style)
            _curve(axes, rows, "validation", **style)
            # The space: matplotlib leaves labels that begin with _ out of a legend.
            axes.plot([], [], "o-", label=f" {name}", markersize=4, **style)
        return _png(axes)


def comparison_picture(comparisons: list[Comparison], title: str) -> bytes:
    """Differences in bits per byte with their confidence intervals and limits, as PNG."""
    with _axes(title, height=1.6 + 0.4 * len(comparisons)) as axes:
        axes.axvline(0, color="black", linewidth=0.8)
        for place, each in enumerate(comparisons):
            color = _VERDICTS["shown only" if each.limit is None else "met" if each.is_within else "not met"]
            axes.plot([each.low, each.high], [place, place], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.plot(each.difference, place, "o", color=color)
            if each.limit is not None:
                axes.plot([each.limit] * 2, [place - 0.4, place + 0.4], linewidth=1.4, **_LIMIT)
        axes.set_yticks(range(len(comparisons)), [each.name for each in comparisons], fontsize=9)
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.set_xlabel("challenger minus champion (bits per byte): left is better")
        for label, color in _VERDICTS.items():
            axes.plot([], [], "o-", color=color, label=label)
        axes.plot([], [], label="limit", **_LIMIT)
        return _png(axes)


def versions_picture(events: list[Event]) -> bytes:
    """Bits per byte of the versions that the events of a history decided about, in their order, as PNG."""
    with _axes("", height=3.2) as axes:
        for name, color in _DECISIONS.items():
            points = [(place, each["bits_per_byte"]) for place, each in enumerate(events) if each["event"] == name]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=color, label=name)
        shown = range(0, len(events), len(events) // _MOST_NAMES + 1)
        axes.set_xticks(shown, [f"{events[at]['version']}\n{events[at]['time'][:10]}" for at in shown], fontsize=8)
        axes.set_ylabel("bits per byte")
        return _png(axes)


def plot(folders: list[Path], path: Path) -> Path:
    """Write the losses of the runs in ``folders`` into one picture, a PNG.

    Raises StoreError when a folder holds no losses, ConfigError when there is no folder for the picture.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}. Make it first, or give another --out")
    names = [folder.absolute().name for folder in folders]
    runs = {}
    for name, folder in zip(names, folders, strict=True):
        rows = read_metrics(folder / "metrics.jsonl")
        if not rows:
            raise StoreError(f"{folder} has no losses to draw: its metrics.jsonl is missing or empty")
        runs[name if names.count(name) == 1 else str(folder)] = rows
    write_file(path, compare_losses(runs))
    return path


@contextmanager
def _loss_axes(title: str) -> Iterator[Any]:
    from matplotlib.ticker import EngFormatter

    with _axes(title, height=4.5) as axes:
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("loss (nats per token)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        yield axes


@contextmanager
def _axes(title: str, height: float) -> Iterator[Any]:
    """Empty axes, ``height`` inches high."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # without a Japanese font it is drawn as a box
        axes = Figure(figsize=(8, height), dpi=110, layout="constrained").subplots()
        axes.grid(alpha=0.25)
        axes.set_title(title, fontsize=10)
        yield axes


def _curve(axes: Any, rows: list[Row], kind: str, **style: Any) -> None:
    points = np.array([(row["tokens"], row["loss"]) for row in by_step(rows, kind).values()], dtype=float)
    if len(points) > _MOST_POINTS:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])
    if len(points):
        marks = "-" if kind == "train" else "o-"
        axes.plot(*points.T, marks, markersize=style["linewidth"] + 2.6, **style)


def _png(axes: Any) -> bytes:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    buffer = BytesIO()
    axes.figure.savefig(buffer, format="png")
    return buffer.getvalue()
