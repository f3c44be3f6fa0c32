"""Progress for people: a live bar on a terminal, now and then a line in the log elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.theme import Theme

Update = Callable[[int, int, str], None]
"""Called with (done, total, note)."""

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def shown(label: str, unit: Literal["bytes", "steps"], console: Console, logger: logging.Logger) -> Iterator[Update]:
    """Show the progress of one stage while the body runs, through the yielded function."""
    if not console.is_terminal:
        yield _lines(label, unit, logger)
        return
    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *counts]
    columns += [TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
    # The console may be one that Prefect made with a theme of its own, which knows nothing of bars.
    with console.use_theme(Theme()), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _lines(label: str, unit: str, logger: logging.Logger) -> Update:
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first
        if now - last < _SECONDS_BETWEEN_LINES or not total:
            return
        last = now
        rate = (done - first) / (now - started)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        amount = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s"
        if unit == "steps":
            amount = f"step {done:,} of {total:,}"
        logger.info("%s: %d %%, %s%s%s", label, 100 * done // total, amount, note and f", {note}", left)

    return update
