"""Progress for people: a live bar on a terminal, elsewhere a line at the start and every quarter of a minute."""

import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text
from rich.theme import Theme

from lmcore.clock import duration
from lmcore.markdown import byte_size

_SECONDS_BETWEEN_POLLS = 1.0
_SECONDS_BETWEEN_LINES = 14.0
"""With the time between polls, nothing is silent for longer than 15 s."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How far a stage is."""

    done: int = 0
    total: int = 0
    """0: not known."""
    note: str = ""
    seconds_left: float | None = None
    """The estimate of the work itself. None: estimated from the growth of ``done``."""


class Update(Protocol):
    """What the work calls to say how far it is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def unwatched(done: int, total: int, note: str = "") -> None:
    """The default where no progress is shown."""


Listener = Callable[[Standing, bool], None]
"""Called once a second with the standing; True the last time."""


@contextmanager
def report_progress(
    label: str,
    unit: str,
    console: Console,
    logger: logging.Logger,
    poll: Callable[[], Standing] | None = None,
    listener: Listener | None = None,
) -> Iterator[Update]:
    """Show the progress of one stage while the body runs.

    The body calls the yielded function, or ``poll`` says how far it is. ``unit`` is what is counted: bytes, steps,
    documents. The work never waits for the display.
    """
    current = Standing()

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal current
        current = Standing(done, total, note)

    def show(is_last: bool) -> None:
        nonlocal current
        current = poll() if poll else current
        display.show(current)

    display = _Bar(label, unit, console) if console.is_interactive else _Lines(label, unit, logger)
    # Two threads, since a listener may wait for a server; the inner one has its last call first.
    heard = _every_second(lambda is_last: listener(current, is_last)) if listener else nullcontext()
    with display.opened(), heard, _every_second(show):
        yield update


@contextmanager
def _every_second(tick: Callable[[bool], None]) -> Iterator[None]:
    """Call ``tick(False)`` once a second in a thread, and ``tick(True)`` when the body is over."""
    is_over = threading.Event()

    def run() -> None:
        is_last = False
        while not is_last:
            is_last = is_over.wait(_SECONDS_BETWEEN_POLLS)
            try:
                tick(is_last)
            except Exception as error:
                _log.debug("progress not shown: %s", error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(timeout=5)


class _Display:
    """The standing of a stage in words. The speed counts from the first thing done, not from loading or compiling."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._first: tuple[float, int] | None = None

    def words(self, standing: Standing) -> list[str]:
        """The amount, the time that is left, and the note, as far as they are known."""
        done, total, seconds = standing.done, standing.total, standing.seconds_left
        speed = self._speed(done)
        if seconds is None and speed and total:
            seconds = (total - done) / speed
        left = f"{duration(seconds)} left" if seconds is not None and done < total else ""
        return [part for part in (self._amount(done, total, speed) if total else "", left, standing.note) if part]

    def _speed(self, done: int) -> float:
        """Things done a second; 0 while it is not known."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done) if done else None
            return 0.0
        since, before = self._first
        return (done - before) / (now - since) if now > since else 0.0

    def _amount(self, done: int, total: int, speed: float) -> str:
        if self._unit == "bytes":
            return f"{byte_size(done)} of {byte_size(total)}" + (f", {byte_size(speed)}/s" if speed > 0 else "")
        return f"step {done:,} of {total:,}" if self._unit == "steps" else f"{done:,} of {total:,} {self._unit}"


class _Lines(_Display):
    """A line when a stage starts, and one every quarter of a minute; no two are equal, since each has its time."""

    def __init__(self, label: str, unit: str, logger: logging.Logger) -> None:
        super().__init__(label, unit)
        self._logger = logger
        self._started = self._last = time.monotonic()

    @contextmanager
    def opened(self) -> Iterator[None]:
        self._logger.info("%s: started", self._label)
        yield

    def show(self, standing: Standing) -> None:
        now = time.monotonic()
        words = self.words(standing)  # also when nothing is said: it measures the speed
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        percent = [f"{100 * standing.done // standing.total} %"] if standing.total else []
        elapsed = f"{timedelta(seconds=int(now - self._started))} so far"
        self._logger.info("%s: %s", self._label, ", ".join([*percent, *words, elapsed]))


class _CutText(ProgressColumn):
    """The standing in words, as far as the terminal is wide."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["about"], no_wrap=True, overflow="ellipsis")


class _Bar(_Display):
    """A live bar. It stays when the stage has ended, so that the terminal keeps how long each stage took."""

    def __init__(self, label: str, unit: str, console: Console) -> None:
        super().__init__(label, unit)
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(width=12)),
            BarColumn(bar_width=15, table_column=Column(width=15)),
            TimeElapsedColumn(table_column=Column(width=7)),
            _CutText(),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(label, total=None, about="")

    @contextmanager
    def opened(self) -> Iterator[None]:
        # The console may be one that Prefect made with a theme of its own, which knows nothing of bars.
        with self._console.use_theme(Theme()):
            self._progress.start()
            try:
                yield
                total = self._progress.tasks[0].total or 1
                self._progress.update(self._task, total=total, completed=total)
            finally:
                with suppress(OSError):  # the terminal is gone: what ended the body counts
                    self._progress.stop()

    def show(self, standing: Standing) -> None:
        about = ", ".join(self.words(standing))
        self._progress.update(self._task, completed=standing.done, total=standing.total or None, about=about)


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at that time: while a bar is shown, rich puts the lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
