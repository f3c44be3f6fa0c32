"""Pictures: the losses of one run, the losses of several runs in one picture, and the comparisons of a gate."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.errors import ConfigError, StoreError
from lmcore.retraining.gate import Comparison
from lmcore.runs.metrics import by_step, read_metrics
from lmcore.store.files import write_file
from lmcore.store.json_files import Row

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache otherwise

_COLORS = {"train": "#7da7d9", "validation": "#c0392b"}
_VERDICTS = {True: "#2e8b57", False: "#c0392b", None: "#8a8a8a"}
_LIMIT = "#444444"
_MOST_POINTS = 1000
"""Most points of a curve. A longer curve is drawn as means of neighbouring points."""
_JAPANESE_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic", "MS Gothic")


def loss_picture(rows: list[Row], title: str) -> bytes:
    """Training and validation loss of one run against tokens, as PNG."""
    with _loss_axes() as axes:
        for kind, color in _COLORS.items():
            _curve(axes, rows, kind, color=color, linewidth=1.4, label=kind)
        axes.set_title(_labels([title])[0], fontsize=10)
        return _png(axes)


def compare_losses(runs: dict[str, list[Row]]) -> bytes:
    """The losses of several runs as PNG, one colour a run: training as a thin line, validation with dots."""
    with _loss_axes() as axes:
        for number, (name, rows) in enumerate(zip(_labels(list(runs)), runs.values(), strict=True)):
            # Earlier runs have wider lines, so that equal curves stay visible.
            style = {"color": f"C{number % 10}", "linewidth": 1.2 + 1.6 * min(len(runs) - 1 - number, 2)}
            _curve(axes, rows, "train", alpha=0.45, **style)
            _curve(axes, rows, "validation", **style)
            axes.plot([], [], "o-", label=name, markersize=4, **style)
        axes.set_title("pale: training loss, with dots: validation loss", fontsize=10)
        return _png(axes)


def comparison_picture(comparisons: list[Comparison], title: str) -> bytes:
    """Differences in bits per byte with their confidence intervals and limits, as PNG."""
    with _axes(height=1.6 + 0.4 * len(comparisons)) as axes:
        axes.axvline(0, color="black", linewidth=0.8)
        for place, each in enumerate(comparisons):
            color = _VERDICTS[None if each.limit is None else each.is_within]
            axes.plot([each.low, each.high], [place, place], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.plot(each.difference, place, "o", color=color)
            if each.limit is not None:
                axes.plot([each.limit] * 2, [place - 0.4, place + 0.4], color=_LIMIT, linestyle="--", linewidth=1.4)
        axes.set_yticks(range(len(comparisons)), _labels([each.name for each in comparisons]), fontsize=9)
        axes.set_ylim(len(comparisons) - 0.4, -0.6)
        axes.set_xlabel("challenger minus champion (bits per byte): left is better")
        axes.set_title(_labels([title])[0], fontsize=10)
        for label, color in (("met", _VERDICTS[True]), ("not met", _VERDICTS[False]), ("shown only", _VERDICTS[None])):
            axes.plot([], [], "o-", color=color, label=label)
        axes.plot([], [], color=_LIMIT, linestyle="--", label="limit")
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
def _loss_axes() -> Iterator[Any]:
    """Empty axes for losses."""
    with _axes(height=4.5) as axes:
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("loss (nats per token)")
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        yield axes


@contextmanager
def _axes(height: float) -> Iterator[Any]:
    """Empty axes, ``height`` inches high. Text may be Japanese while the body runs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.family": _fonts()}):
        axes = Figure(figsize=(8, height), dpi=110, layout="constrained").subplots()
        axes.grid(alpha=0.25)
        yield axes


def _curve(axes: Any, rows: list[Row], kind: str, **style: Any) -> None:
    points = np.array([(row["tokens"], row["loss"]) for row in by_step(rows, kind).values()], dtype=float)
    if len(points):
        tokens, losses = _thinned(points).T
        size = style["linewidth"] + 2.6
        axes.plot(tokens, losses, "-" if kind == "train" else "o-", markersize=size, **style)


def _thinned(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``points`` (n, 2), or _MOST_POINTS means of neighbours if there are more."""
    if len(points) <= _MOST_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])


def _png(axes: Any) -> bytes:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    buffer = BytesIO()
    axes.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _fonts() -> list[str]:
    """matplotlib's own font, and the first Japanese one of this machine."""
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in _JAPANESE_FONTS if name in there][:1]]


@cache
def _characters() -> frozenset[str]:
    """The characters that these fonts contain."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(chr(code) for name in _fonts() for code in FT2Font(findfont(name)).get_charmap())


def _labels(names: list[str]) -> list[str]:
    """Names that the fonts can draw. Different names stay different, and $ does not start a formula."""
    writable = ["".join(c if c in _characters() else "?" for c in name) for name in names]
    numbered = [f"{n} ({i})" if writable.count(n) > 1 else n for i, n in enumerate(writable, 1)]
    # matplotlib leaves labels that begin with _ out of a legend.
    return [(f" {name}" if name.startswith("_") else name).replace("$", r"\$") for name in numbered]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
