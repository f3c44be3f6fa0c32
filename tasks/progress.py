"""Live progress of a task: on the terminal of whoever started it, and as Prefect artifacts: a bar, and a table.

A thread of its own looks at the work once a second and tells Prefect every few seconds. The work never waits for
it, and what Prefect cannot take just then is dropped.
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    TableArtifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from lmcore.progress import Update, shown

Standing = tuple[int, int, str]
"""(done, total, note)"""

_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS_BETWEEN_ARTIFACTS = 5
_SECONDS_BETWEEN_TABLES = 30.0
_log = logging.getLogger(__name__)


class LiveTable:
    """A table artifact that is made once and replaced while its rows change."""

    def __init__(self, key: str, description: str, rows: Callable[[], list[dict[str, Any]]]) -> None:
        self._key = key
        self._description = description
        self._rows = rows
        self._sent: list[dict[str, Any]] = []
        self._artifact: UUID | None = None
        self._due = time.monotonic() + _SECONDS_BETWEEN_TABLES

    def refresh(self) -> None:
        """Publish, if the last time was half a minute ago, or 50 times as long as that took."""
        if time.monotonic() >= self._due:
            started = time.monotonic()
            self.publish()
            now = time.monotonic()
            self._due = now + max(_SECONDS_BETWEEN_TABLES, 50 * (now - started))

    def publish(self) -> None:
        """Show the rows as they are now, if they have changed."""
        try:
            rows = self._rows()
            if rows and rows != self._sent:
                self._send(rows)
                self._sent = rows
        except Exception as error:
            _log.debug("table %s not published: %s", self._key, error)

    def _send(self, rows: list[dict[str, Any]]) -> None:
        if self._artifact is None:
            created: Any = create_table_artifact(rows, key=self._key, description=self._description)
            self._artifact = UUID(str(created))
            return
        data: Any = TableArtifact(table=rows).format()
        with get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, ArtifactUpdate(data=data))


@contextmanager
def watched(
    label: str,
    unit: Literal["bytes", "steps"],
    look: Callable[[], Standing | None],
    table: LiveTable | None = None,
) -> Iterator[None]:
    """Show, while the body runs, what ``look`` says: how much is done; and keep ``table`` fresh, also at the end."""
    logger = get_run_logger()
    over = threading.Event()
    with shown(label, unit, _console(), _plain(logger)) as update:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(_follow, label, look, update, over, table), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5)
    if table is not None:
        table.publish()


def _follow(
    label: str,
    look: Callable[[], Standing | None],
    update: Update,
    over: threading.Event,
    table: LiveTable | None,
) -> None:
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
            if table is not None and not last:
                table.refresh()
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
        _log.debug("progress not published: %s", error)
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
