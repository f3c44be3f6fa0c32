"""metrics.jsonl of a run: one JSON object a line. Training appends rows; displays and report/losses.py read them.

Rows have a ``kind``:
    train        loss (mean over the steps since the last row), learning_rate, gradient_norm, tokens_per_second, ...
    validation   loss, bits_per_byte, and ``sources`` {name: loss} where there are several
    event        text: what a guard did
Losses are in nats per token. With ``train.tensorboard``, event files get the same figures.
"""

from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

from lmcore.errors import ConfigError, no_space_named
from lmcore.store.json_files import Row, append_line, read_lines, write_lines

_TAIL_BYTES = 65_536
_EVERY_ROW = ("kind", "step", "total_steps")


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
