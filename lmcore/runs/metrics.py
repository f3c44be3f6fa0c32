"""metrics.jsonl of a run: one JSON object a line. Training appends rows; displays and reports read them.

Rows have a ``kind``:
    train        loss (mean over the steps since the last row), learning_rate, gradient_norm, tokens_per_second, ...
    validation   loss, bits_per_byte, and ``sources`` {name: loss} where there are several
    event        text: what a guard did
Losses are in nats per token. With ``train.tensorboard``, event files get the same figures.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import linear_regression, median
from textwrap import indent
from typing import Any

from lmcore.errors import ConfigError, no_space_named
from lmcore.store.json_files import Row, append_line, read_lines, write_lines

_TAIL_BYTES = 65_536
_EVERY_ROW = ("kind", "step", "total_steps")
_MOST_EVENTS = 20
_LEAST_VALIDATIONS = 3
"""Fewer validations in the last third do not make a trend."""
_NOISE = 0.02
"""Nats per token. A validation loss that rises less is not called rising."""

_FIGURES: dict[str, tuple[str, Callable[[list[Any]], str]]] = {
    "mfu": ("MFU", lambda shares: f"{median(shares):.1%} of the stated peak"),
    "memory_bytes": ("peak memory", lambda sizes: f"{max(sizes) / 2**30:,.2f} GiB"),
    "data_wait_share": ("waiting for data", lambda shares: f"{median(shares):.2%} of the time"),
    "skipped": ("skipped steps", lambda counts: f"{counts[-1]:,}"),
}
"""Figures of the rows that the report shows: name, and text of all values."""


def read_metrics(path: Path, last_bytes: int = 0) -> list[Row]:
    """All rows, or those in the last bytes of the file. Damaged rows are skipped."""
    return read_lines(path, last_bytes, skip_damaged=True)


class MetricsWriter:
    """Appends rows. Opening it drops the rows after ``step``, because training will write them again.

    After a rollback to ``step``, ``keep_events`` keeps the events that led to it, as events of that step. Without
    ``is_validated`` the validation of ``step`` comes again too.

    ``tensorboard`` is a folder for event files. New event files begin with the rows that exist; later steps in old ones
    are purged. Raises ConfigError when the package tensorboard is missing.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        tensorboard: Path | None = None,
        keep_events: bool = False,
        is_validated: bool = True,
    ) -> None:
        rows = read_metrics(path)
        again = None if is_validated else ("validation", step)
        kept = [row for row in rows if row["step"] <= step and (row["kind"], row["step"]) != again]
        kept += [{**row, "step": step} for row in rows if keep_events and row["kind"] == "event" and row["step"] > step]
        self._path, self._events = path, None
        if tensorboard is not None:
            is_new = not any(tensorboard.glob("events.*"))
            self._events = _event_writer(tensorboard, step + 1)
            for row in kept if is_new else []:
                self._add_to_events(row)
        write_lines(path, kept)

    def write(self, row: Row) -> None:
        """Append one row. Readers see it at once."""
        append_line(self._path, row, synced=False)
        if self._events is not None:
            with no_space_named(self._path.parent):
                self._add_to_events(row)
                self._events.flush()  # at every row, so that a kill loses no more here than in metrics.jsonl

    def write_text(self, tag: str, text: str, step: int) -> None:
        """Write a text to the event files, if there are any."""
        if self._events is not None:
            # TensorBoard reads Markdown: four spaces keep lines and characters as they are.
            self._events.add_text(tag, indent(text, "    ", lambda line: True), step)
            self._events.flush()

    def _add_to_events(self, row: Row) -> None:
        events: Any = self._events
        if row["kind"] == "event":
            events.add_text("events", row["text"], row["step"])
        for name, figure in _numbers(row):
            events.add_scalar(f"{row['kind']}/{name}", figure, row["step"])


def _event_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"train.tensorboard needs a package that is not here ({error}): install the extra, "
            "pip install 'lm-pipeline[tensorboard]', or leave train.tensorboard off"
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step)


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    """(name, figure) of each number in a row: loss, ..., sources/wiki."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{part}", figure) for part, figure in value.items())
        elif name not in _EVERY_ROW and isinstance(value, int | float):
            yield name, value


def by_step(rows: list[Row], kind: str) -> dict[int, Row]:
    """Rows of one kind by step, in order. If a step was repeated after a rollback, its last row counts."""
    return dict(sorted({row["step"]: row for row in rows if row["kind"] == kind}.items()))


def training_note(path: Path) -> str:
    """Loss and speed of the last rows; empty before the first row."""
    rows = {row["kind"]: row for row in read_metrics(path, _TAIL_BYTES)}
    if trained := rows.get("train"):
        return f"loss {trained['loss']:.3f}, {trained['tokens_per_second']:,.0f} tokens/s"
    return f"loss {rows['validation']['loss']:.3f}" if "validation" in rows else ""


def loss_table(rows: list[Row], most: int = 50) -> list[dict[str, Any]]:
    """At most ``most`` rows of step, tokens and losses, spread evenly to the last; every validation if they fit."""
    trains, validations = by_step(rows, "train"), by_step(rows, "validation")
    steps = sorted(trains.keys() | validations.keys())
    if len(steps) > most:
        steps = list(validations) or steps
    stride = -(-len(steps) // most) or 1
    return [
        {
            "step": step,
            "tokens": (trains.get(step) or validations[step])["tokens"],
            "train loss": _loss(trains, step),
            "validation loss": _loss(validations, step),
        }
        for step in reversed(steps[::-1][::stride])
    ]


def _loss(rows: dict[int, Row], step: int) -> float | str:
    return round(rows[step]["loss"], 4) if step in rows else ""


def figures(rows: list[Row]) -> dict[str, str]:
    """Figures of a training by name: MFU, memory, waiting for data, skipped steps."""
    trains = [row for row in rows if row["kind"] == "train"]
    values = {name: [row[name] for row in trains if row.get(name) is not None] for name in _FIGURES}
    return {title: text(values[name]) for name, (title, text) in _FIGURES.items() if values[name]}


def events(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows of step and text of the last events."""
    return [{"step": row["step"], "event": row["text"]} for row in rows if row["kind"] == "event"][-_MOST_EVENTS:]


def warnings(rows: list[Row]) -> list[str]:
    """Sentences that warn about the losses of a finished run: nothing was validated, or the model overfits."""
    trained, validated = (
        [(step, row["loss"]) for step, row in by_step(rows, kind).items()] for kind in ("train", "validation")
    )
    if trained and not validated:
        return [
            "nothing was validated, so the quality of the model is unknown: the run never reaches train.validate_every"
        ]
    if len(validated) <= _LEAST_VALIDATIONS:
        return []
    third = validated[-max(_LEAST_VALIDATIONS, len(validated) // 3) :]
    first, last = third[0][0], third[-1][0]
    rise, fall = _rise(third), -_rise([point for point in trained if first <= point[0] <= last])
    if rise <= _NOISE or fall <= 0:
        return []
    step, loss = min(validated, key=lambda point: point[1])
    return [
        f"overfitting: from step {first:,} to {last:,} the validation loss rose by {rise:.2f} nats per token while the "
        f"training loss fell by {fall:.2f}. It was lowest at step {step:,} ({loss:.4f}): end earlier "
        "(train.patience), train on more text, or use model.dropout or a smaller model"
    ]


def _rise(points: list[tuple[int, float]]) -> float:
    """The rise of the line fitted to (step, loss), from its first step to its last; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    steps, losses = zip(*points, strict=True)
    return float(linear_regression(steps, losses).slope * (steps[-1] - steps[0]))
