"""What is published while training: seldom, in place, and never at the cost of the work. No server is needed here."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

import lmcore.progress
from lmcore.progress import Standing
from tasks import progress
from tasks.progress import LiveTable, _ProgressArtifact, report_progress


class Server:
    """Stands for Prefect: keeps the tables of artifacts, or refuses them while it is down."""

    def __init__(self) -> None:
        self.tables: dict[UUID, list[dict[str, Any]]] = {}
        self.calls = 0
        self.is_down = False

    def create(self, table: list[dict[str, Any]], key: str, description: str) -> UUID:
        self._answer()
        artifact = uuid4()
        self.tables[artifact] = table
        return artifact

    def update_artifact(self, artifact: UUID, update: Any) -> None:
        self._answer()
        self.tables[artifact] = json.loads(update.data)

    def _answer(self) -> None:
        self.calls += 1
        if self.is_down:
            raise ConnectionError("the server is down")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(progress, "create_table_artifact", server.create)
    monkeypatch.setattr(progress, "get_client", lambda sync_client: nullcontext(server))
    return server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that tables see, in seconds; set its only element."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_one_table_is_replaced_while_its_rows_grow(server: Server) -> None:
    rows: list[dict[str, Any]] = []
    table = LiveTable("losses", "Losses", lambda: list(rows))
    table.publish()
    assert server.calls == 0
    for step in range(3):
        rows.append({"step": step})
        table.publish()
        table.publish()
    assert list(server.tables.values()) == [[{"step": 0}, {"step": 1}, {"step": 2}]]
    assert server.calls == 3


def test_it_is_refreshed_every_half_minute_at_most(server: Server, clock: list[float]) -> None:
    table = LiveTable("losses", "Losses", lambda: [{"second": clock[0]}])
    for _ in range(300):
        clock[0] += 1
        table.refresh()
    assert server.calls == 10


def test_a_day_is_some_thousand_rows_of_events(
    server: Server, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[float] = []
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _, percent, **__: updates.append(percent))
    table, bar = LiveTable("losses", "Losses", lambda: [{"second": clock[0]}]), _ProgressArtifact("training")
    for second in range(24 * 3600):
        clock[0] += 1
        table.refresh()
        bar.refresh(Standing(second, 24 * 3600), is_last=False)
    assert len(updates) < 1700
    assert server.calls < 450


def test_rows_that_are_slow_to_read_are_read_more_seldom(server: Server, clock: list[float]) -> None:
    def read_a_long_file() -> list[dict[str, Any]]:
        clock[0] += 2
        return [{"second": clock[0]}]

    table = LiveTable("losses", "Losses", read_a_long_file)
    for _ in range(300):
        clock[0] += 1
        table.refresh()
    assert server.calls == 3


@pytest.mark.parametrize("is_made", [False, True])
def test_what_the_server_does_not_take_is_dropped_and_comes_later(server: Server, is_made: bool) -> None:
    rows = [{"step": 1}]
    table = LiveTable("losses", "Losses", lambda: list(rows))
    if is_made:
        table.publish()
    rows.append({"step": 2})
    server.is_down = True
    table.publish()
    server.is_down = False
    table.publish()
    assert list(server.tables.values()) == [[{"step": 1}, {"step": 2}]]


def watching(monkeypatch: pytest.MonkeyPatch, table: LiveTable, body: Callable[[], None]) -> None:
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(lmcore.progress, "_SECONDS_BETWEEN_POLLS", 0.01)
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", lambda *_, **__: None)
    with report_progress("training", "steps", lambda: Standing(1, 2), table):
        body()


def test_the_table_is_whole_when_the_work_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": 1}]
    table = LiveTable("losses", "Losses", lambda: list(rows))
    watching(monkeypatch, table, lambda: rows.append({"step": 2}))
    assert list(server.tables.values()) == [rows]


def test_rows_that_cannot_be_read_do_not_end_the_work(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> list[dict[str, Any]]:
        raise ValueError("no JSON")

    done: list[bool] = []
    watching(monkeypatch, LiveTable("losses", "Losses", damaged), lambda: done.append(True))
    assert done == [True]
    assert server.tables == {}
