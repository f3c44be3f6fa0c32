"""What the rows of a run's metrics.jsonl say, for pages: a table of losses, figures, events and warnings."""

from collections.abc import Callable
from statistics import linear_regression, median
from typing import Any

from lmcore.runs.metrics import by_step
from lmcore.store.json_files import Row

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
