"""Live progress of a task: on the terminal, and as Prefect artifacts (a bar and a table).

A separate thread polls the work once a second and updates Prefect every few seconds, and a long stage every minute. The
work never waits for it, and an update that fails is dropped.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
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

from lmcore import progress
from lmcore.progress import Standing, Update
from tasks.pages import page_key

_SECONDS_BETWEEN_ARTIFACTS = (5.0, 60.0)
"""At first, and at most."""
_SECONDS_BETWEEN_TABLES = (30.0, 300.0)
_SHARE = 0.02
"""Seconds between two updates, as a share of those since the start. Each update is four rows of the server's events."""
_log = logging.getLogger(__name__)


class LiveTable:
    """A table artifact that is created once and updated when its rows change."""

    def __init__(self, key: str, description: str, rows: Callable[[], list[dict[str, Any]]]) -> None:
        self._key = page_key(key)
        self._description = description
        self._rows = rows
        self._sent: list[dict[str, Any]] = []
        self._artifact: UUID | None = None
        self._began = time.monotonic()
        self._due = self._began + _SECONDS_BETWEEN_TABLES[0]

    def refresh(self) -> None:
        """Publish if it is time to, and if the last time is at least 50 times the duration of publishing ago."""
        if time.monotonic() >= self._due:
            started = time.monotonic()
            self.publish()
            now = time.monotonic()
            self._due = now + max(_pause(now - self._began, _SECONDS_BETWEEN_TABLES), 50 * (now - started))

    def publish(self) -> None:
        """Send the present rows if they changed."""
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
def report_progress(
    label: str, unit: str, poll: Callable[[], Standing] | None = None, table: LiveTable | None = None
) -> Iterator[Update]:
    """Show the progress of a task on its console and in its log, in a progress artifact and in ``table``."""
    artifact = _ProgressArtifact(label)

    def publish(standing: Standing, is_last: bool) -> None:
        artifact.refresh(standing, is_last)
        if table is not None and not is_last:
            table.refresh()

    with progress.report_progress(label, unit, _console(), run_logger(), poll, publish) as update:
        yield update
    if table is not None:
        table.publish()


def _pause(seconds: float, least_and_most: tuple[float, float]) -> float:
    """Seconds until the next update, so many after the start: a long stage is updated more seldom."""
    least, most = least_and_most
    return min(max(least, _SHARE * seconds), most)


class _ProgressArtifact:
    """A progress artifact that is created once and updated every few seconds."""

    def __init__(self, label: str) -> None:
        self._label, self._key = label, page_key(label)
        self._artifact: UUID | None = None
        self._began = self._due = time.monotonic()

    def refresh(self, standing: Standing, is_last: bool) -> None:
        """Publish the progress. Without a total nothing is published."""
        now = time.monotonic()
        if standing.total and (is_last or now >= self._due):
            self._due = now + _pause(now - self._began, _SECONDS_BETWEEN_ARTIFACTS)
            self._publish(100 * standing.done / standing.total, standing.note)

    def _publish(self, percent: float, note: str) -> None:
        description = f"{self._label}: {note}" if note else self._label
        try:
            if self._artifact is None:
                created: Any = create_progress_artifact(percent, key=self._key, description=description)
                self._artifact = UUID(str(created))
            else:
                update_progress_artifact(self._artifact, percent, description=description)
        except Exception as error:
            _log.debug("progress not published: %s", error)


def run_logger() -> logging.Logger:
    """Prefect's run logger. It is an adapter that behaves like the logger it wraps."""
    return get_run_logger()  # type: ignore[return-value]


def _console() -> Console:
    """The console that Prefect logs to, so that log lines and the bar do not overwrite each other."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            return handler.console
    return Console(stderr=True)
