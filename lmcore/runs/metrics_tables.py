"""Tables, figures and warnings from the rows of metrics.jsonl."""

from statistics import median
from typing import Any

import numpy as np

from lmcore.runs.metrics import by_step
from lmcore.store.json_files import Row

_MOST_SOURCE_ROWS, _MOST_EVENTS = 12, 20
_LEAST_VALIDATIONS = 3
"""Fewer validations in the last third do not make a trend."""
_NOISE = 0.02
"""Nats per token. A validation loss that rises less is not called rising."""


def loss_table(rows: list[Row], most: int = 50) -> list[dict[str, Any]]:
    """At most ``most`` rows of step, tokens and losses, spread evenly to the last; every validation if they fit."""
    trains, validations = by_step(rows, "train"), by_step(rows, "validation")
    steps = sorted(trains.keys() | validations.keys())
    if len(steps) > most:
        steps = [step for step in steps if step in validations] or steps
    return [
        {
            "step": step,
            "tokens": (trains.get(step) or validations[step])["tokens"],
            "train loss": _rounded(trains.get(step, {}).get("loss")),
            "validation loss": _rounded(validations.get(step, {}).get("loss")),
        }
        for step in _spread(steps, most)
    ]


def source_table(rows: list[Row]) -> list[dict[str, Any]]:
    """At most 12 rows of step and the validation loss of every source; none where there is one source."""
    validations = [row for row in by_step(rows, "validation").values() if row.get("sources")]
    names = sorted({name for row in validations for name in row["sources"]})
    return [
        {"step": row["step"], **{name: _rounded(row["sources"].get(name)) for name in names}}
        for row in _spread(validations, _MOST_SOURCE_ROWS)
    ]


def figures(rows: list[Row]) -> dict[str, str]:
    """Figures of a training by name: MFU, memory, waiting for data, skipped steps."""

    def values(name: str) -> list[float]:
        return [row[name] for row in rows if row["kind"] == "train" and row.get(name) is not None]

    found = {}
    if shares := values("mfu"):
        found["MFU"] = f"{median(shares):.1%} of the stated peak"
    if sizes := values("memory_bytes"):
        found["peak memory"] = f"{max(sizes) / 2**30:,.2f} GiB"
    if waits := values("data_wait_share"):
        found["waiting for data"] = f"{median(waits):.2%} of the time"
    if skipped := values("skipped"):
        found["skipped steps"] = f"{skipped[-1]:,}"
    return found


def events(rows: list[Row]) -> list[tuple[int, str]]:
    """(step, text) of the last events."""
    return [(row["step"], row["text"]) for row in rows if row["kind"] == "event"][-_MOST_EVENTS:]


def warnings(rows: list[Row]) -> list[str]:
    """Sentences that warn about the losses of a finished run."""
    trained, validated = (
        [(step, row["loss"]) for step, row in by_step(rows, kind).items()] for kind in ("train", "validation")
    )
    if trained and not validated:
        return [
            "nothing was validated, so the quality of the model is unknown: the run never reaches train.validate_every"
        ]
    return _overfit(trained, validated)


def _overfit(trained: list[tuple[int, float]], validated: list[tuple[int, float]]) -> list[str]:
    third = validated[-max(_LEAST_VALIDATIONS, len(validated) // 3) :]
    if len(validated) <= _LEAST_VALIDATIONS:
        return []
    first, last = third[0][0], third[-1][0]
    rise = _rise(third)
    fall = -_rise([point for point in trained if first <= point[0] <= last])
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
    steps, losses = np.array(points, dtype=float).T
    centred = steps - steps.mean()
    return float(centred @ losses / (centred @ centred) * (steps[-1] - steps[0]))


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most ``most`` items at equal distances, including the last."""
    stride = -(-len(items) // most) or 1
    return items[::-1][::stride][::-1]


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)
