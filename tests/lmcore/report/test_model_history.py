"""The page of a model holds a year, whatever was pruned, and is made of text only."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmcore import clock
from lmcore.registry.versions import HISTORY, model_folder
from lmcore.report.model_history import model_history
from lmcore.store.json_files import append_line

NOW = datetime.fromisoformat("2026-11-30T12:00:00+00:00")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(clock, "utc", lambda: NOW)
    return tmp_path


def happened(store: Path, days_ago: int, event: str, version: str, **more: Any) -> None:
    (model_folder(store, "ja") / version).mkdir(parents=True, exist_ok=True)
    time = (NOW - timedelta(days=days_ago)).isoformat()
    append_line(model_folder(store, "ja") / HISTORY, {"time": time, "event": event, "version": version, **more})


def test_a_page_holds_the_decisions_of_a_year_with_their_figures(store: Path) -> None:
    happened(store, 400, "promoted", "v0001", bits_per_byte=1.9, tokens=1000)
    happened(store, 14, "added", "v0002")
    happened(
        store, 14, "promoted", "v0002", bits_per_byte=1.5, tokens=2_000_000, run="gpt2-a", page="http://h:4200/r/1"
    )
    happened(store, 7, "refused", "v0003", bits_per_byte=1.6, tokens=3_000_000, run="gpt2-b", page="")
    happened(store, 1, "rolled back", "v0001")
    (model_folder(store, "ja") / "v0003").rmdir()  # it was pruned
    page = model_history(store, "ja")
    assert page.description == "ja: v0001 is in use; 3 decisions in a year"
    assert page.markdown.startswith("# ja\n\nv0001 is in use.\n\n![bits per byte](data:image/png;base64,")
    assert page.markdown.splitlines()[-4:] == [
        "| --- | --- | --- | --- | --- | --- |",
        "| 2026-11-29 12:00 UTC | v0001 | rolled back |  |  |  |",
        "| 2026-11-23 12:00 UTC | v0003 | refused | 1.6000 | 3,000,000 | gpt2-b |",
        "| 2026-11-16 12:00 UTC | v0002 | promoted | 1.5000 | 2,000,000 | [gpt2-a](http://h:4200/r/1) |",
    ]


@pytest.mark.parametrize("page", ["javascript:alert(1)", "http://h/a) ![x](http://evil.test/i.png", "http://h/<b>"])
def test_no_line_of_a_history_is_markup(store: Path, page: str) -> None:
    happened(store, 1, "refused", "v0001", bits_per_byte=1.0, tokens=1, run="![x](http://evil.test/i.png)", page=page)
    shown = model_history(store, "ja").markdown.splitlines()[-1]
    assert "](" not in shown.replace(r"\]\(", "").replace(r"\](", "")
    assert page not in shown


def test_a_model_without_a_decision_has_a_page(store: Path) -> None:
    happened(store, 1, "added", "v0001")
    page = model_history(store, "ja")
    assert page.description == "ja: no version is in use; 0 decisions in a year"
    assert "![" not in page.markdown
