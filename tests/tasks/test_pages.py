"""Tables of actions on the page of a run."""

import logging
from typing import Any

import pytest

from tasks.pages import show_table


def test_a_cell_is_text_and_never_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr("tasks.pages.create_table_artifact", lambda rows, **_: sent.append(rows))
    monkeypatch.setattr("tasks.pages.get_run_logger", lambda: logging.getLogger())
    show_table("forget", [{"what": "texts/<b>*x*</b>.txt", "about it": "v0001"}], "forgotten")
    assert sent == [[{"what": r"texts/\<b\>\*x\*\</b\>.txt", "about it": "v0001"}]]
