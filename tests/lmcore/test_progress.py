"""A bar on a terminal, a line now and then elsewhere."""

import io
import logging
from typing import Any, Literal

import pytest
from rich.console import Console

from lmcore import progress
from lmcore.progress import shown

logger = logging.getLogger("test.progress")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, in seconds; set its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], unit: Literal["bytes", "steps"], calls: list[Any], caplog: Any) -> list[str]:
    """The lines logged by calls (second, done, total, note)."""
    caplog.set_level(logging.INFO)
    with shown("training", unit, Console(file=io.StringIO()), logger) as update:
        for second, *arguments in calls:
            clock[0] = 100.0 + second
            update(*arguments)
    return [record.getMessage() for record in caplog.records]


def test_a_line_every_quarter_minute_at_most(clock: list[float], caplog: Any) -> None:
    calls = [(second, second, 1000, "") for second in range(61)]
    assert len(lines(clock, "steps", calls, caplog)) == 4


def test_a_line_says_how_far_and_how_long(clock: list[float], caplog: Any) -> None:
    calls = [(0, 0, 4000, ""), (20, 1000, 4000, "loss 2.5")]
    assert lines(clock, "steps", calls, caplog) == ["training: 25 %, step 1,000 of 4,000, loss 2.5, 60 s left"]


def test_bytes_are_shown_with_their_speed(clock: list[float], caplog: Any) -> None:
    calls = [(0, 0, 8_000_000, ""), (20, 2_000_000, 8_000_000, "")]
    assert lines(clock, "bytes", calls, caplog) == ["training: 25 %, 2.0 of 8.0 MB, 0.1 MB/s, 60 s left"]


def test_what_was_done_before_does_not_count_as_speed(clock: list[float], caplog: Any) -> None:
    calls = [(0, 900, 1000, ""), (50, 950, 1000, "")]
    assert lines(clock, "steps", calls, caplog) == ["training: 95 %, step 950 of 1,000, 50 s left"]


@pytest.mark.parametrize("calls", [[(20, 0, 0, "")], [(1, 5, 10, ""), (14, 9, 10, "")]])
def test_nothing_is_said_of_an_unknown_total_or_too_early(clock: list[float], caplog: Any, calls: Any) -> None:
    assert lines(clock, "steps", calls, caplog) == []


def test_a_stage_that_stands_still_has_no_time_left(clock: list[float], caplog: Any) -> None:
    assert lines(clock, "steps", [(0, 5, 10, ""), (20, 5, 10, "")], caplog) == ["training: 50 %, step 5 of 10"]


@pytest.mark.parametrize(("unit", "count"), [("steps", "5/10"), ("bytes", "5/10 bytes")])
def test_a_terminal_shows_a_bar_and_nothing_is_logged(unit: Any, count: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    output = io.StringIO()
    with shown("training", unit, Console(file=output, force_terminal=True, width=120), logger) as update:
        update(5, 10, "loss 2.5")
    text = output.getvalue()
    assert "training" in text
    assert "loss 2.5" in text
    assert count in text
    assert caplog.records == []


def test_an_error_passes_and_the_cursor_comes_back() -> None:
    output = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        shown("training", "steps", Console(file=output, force_terminal=True), logger),
    ):
        raise KeyboardInterrupt
    assert output.getvalue().rfind("\x1b[?25h") > output.getvalue().rfind("\x1b[?25l")
