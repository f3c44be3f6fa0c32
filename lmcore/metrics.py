"""metrics.jsonl: one JSON object a line, appended while training, read by everyone else.

Rows have a ``kind``: "train" (loss is the mean over the steps since the last row) or "validation". Losses are
in nats per token.
"""

import json
from pathlib import Path
from typing import Any

from lmcore.errors import no_space_named
from lmcore.store import write_file

Row = dict[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """All whole rows; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def last_standing(path: Path) -> tuple[int, int, str] | None:
    """(steps done, steps in all, a note with loss and speed) by the last rows; None before the first."""
    rows = read_metrics(path)[-2:]
    if not rows:
        return None
    trained = next((row for row in reversed(rows) if row["kind"] == "train"), None)
    note = f"loss {rows[-1]['loss']:.3f}"
    if trained is not None:
        note = f"loss {trained['loss']:.3f}, {trained['tokens_per_second']:,.0f} tokens/s"
    return rows[-1]["step"], rows[-1]["total_steps"], note


class MetricsWriter:
    """Appends rows. Opening it drops the rows after ``step``, which training is about to make again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_file(path, b"".join(_line(row) for row in kept))
        self._path = path

    def write(self, row: Row) -> None:
        """Append one row; it is there for readers at once."""
        with no_space_named(self._path.parent), open(self._path, "ab") as file:
            file.write(_line(row))


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
