"""Live progress of a task: on the terminal of whoever started it, and as a Prefect progress artifact.

A thread of its own looks at the work once a second and tells Prefect every few seconds. The work never waits for
it, and what Prefect cannot take just then is dropped.
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from lmcore.progress import Update, shown

Standing = tuple[int, int, str]
"""(done, total, note)"""

_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS_BETWEEN_ARTIFACTS = 5


@contextmanager
def watched(label: str, unit: Literal["bytes", "steps"], look: Callable[[], Standing | None]) -> Iterator[None]:
    """Show, while the body runs, what ``look`` says: how much is done."""
    logger = get_run_logger()
    over = threading.Event()
    with shown(label, unit, _console(), _plain(logger)) as update:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(_follow, label, look, update, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5)


def _follow(label: str, look: Callable[[], Standing | None], update: Update, over: threading.Event) -> None:
    artifact: UUID | None = None
    looks = 0
    while True:
        last = over.wait(_SECONDS_BETWEEN_LOOKS)
        standing = look()
        if standing is not None and standing[1]:
            done, total, note = standing
            update(done, total, note)
            if last or looks % _LOOKS_BETWEEN_ARTIFACTS == 0:
                artifact = _publish(artifact, label, 100 * done / total, note)
            looks += 1
        if last:
            return


def _publish(artifact: UUID | None, label: str, percent: float, note: str) -> UUID | None:
    description = f"{label}: {note}" if note else label
    try:
        if artifact is None:
            created: Any = create_progress_artifact(percent, key=label, description=description)
            return UUID(str(created))
        update_progress_artifact(artifact, percent, description=description)
    except Exception as error:
        logging.getLogger(__name__).debug("progress not published: %s", error)
    return artifact


def _plain(logger: Any) -> logging.Logger:
    """Prefect's run logger is an adapter that behaves like the logger it wraps."""
    return logger  # type: ignore[no-any-return]


def _console() -> Console:
    """The console that Prefect logs to, so that log lines and the bar do not overwrite each other."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            return handler.console
    return Console(stderr=True)
