"""A bar on a terminal; elsewhere lines that are never equal, whose estimates count only what was measured."""

import io
import logging
import re
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lmcore import progress
from lmcore.clock import duration, for_people
from lmcore.progress import StandardError, Standing, report_progress

logger = logging.getLogger("test.progress")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, in seconds; set its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], unit: str, calls: list[Any], caplog: Any) -> list[str]:
    """What is logged after the first line, when a look at each (second, standing) finds it."""
    caplog.set_level(logging.INFO)
    display = progress._Lines("training", unit, logger)
    with display.opened():
        for second, standing in calls:
            clock[0] = 100.0 + second
            display.show(standing)
    first, *others = [record.getMessage() for record in caplog.records]
    assert first == "training: started"
    return others


def test_no_silence_is_longer_than_a_quarter_of_a_minute(clock: list[float], caplog: Any) -> None:
    calls = [(second, Standing(0, 0)) for second in range(181)]
    found = lines(clock, "steps", calls, caplog)
    assert len(found) == 12
    assert found[0] == "training: 0:00:14 so far"


def test_a_stage_that_stands_still_never_says_the_same_twice(clock: list[float], caplog: Any) -> None:
    found = lines(clock, "steps", [(second, Standing(5, 10, "loss 2.5")) for second in range(0, 3600, 1)], caplog)
    assert all(one != other for one, other in pairwise(found))


def test_a_line_says_how_far_and_how_long(clock: list[float], caplog: Any) -> None:
    calls = [(0, Standing(0, 4000)), (20, Standing(1000, 4000, "loss 2.5", 1140.0))]
    said = "training: 25 %, step 1,000 of 4,000, 19 min left, loss 2.5, 0:00:20 so far"
    assert lines(clock, "steps", calls, caplog) == [said]


def test_what_loads_before_the_first_thing_is_done_does_not_count(clock: list[float], caplog: Any) -> None:
    # 100 s of loading, then 10 a second: with 790 left that is 79 s, by the time since the start 451 s.
    calls = [(0, Standing(0, 1000)), (100, Standing(10, 1000)), (120, Standing(210, 1000))]
    found = lines(clock, "documents", calls, caplog)
    assert "left" not in found[0]
    assert "210 of 1,000 documents, 1 min 20 s left" in found[1]


def test_bytes_are_shown_with_their_speed(clock: list[float], caplog: Any) -> None:
    calls = [(1, Standing(1_000_000, 8_000_000)), (21, Standing(3_000_000, 8_000_000))]
    said = "training: 37 %, 3.0 MB of 8.0 MB, 100.0 kB/s, 50 s left, 0:00:21 so far"
    assert lines(clock, "bytes", calls, caplog) == [said]


def test_the_first_line_is_said_at_the_start_and_the_work_is_followed(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_POLLS", 0.01)
    heard: list[tuple[Standing, bool]] = []
    caplog.set_level(logging.INFO)
    with report_progress(
        "export", "files", Console(file=io.StringIO()), logger, listener=lambda *standing: heard.append(standing)
    ) as update:
        assert [record.getMessage() for record in caplog.records] == ["export: started"]
        update(5, 10, "half")
    assert heard[-1] == (Standing(5, 10, "half"), True)
    assert not any(is_last for _, is_last in heard[:-1])


def test_a_poll_that_fails_costs_the_display_and_not_the_work(monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_POLLS", 0.01)

    def broken() -> Standing:
        raise OSError("the disk is gone")

    done = False
    with report_progress("training", "steps", Console(file=io.StringIO()), logger, broken):
        done = True
    assert done


@pytest.mark.parametrize(
    ("unit", "words"), [("steps", "step 5 of 10"), ("bytes", "5 bytes of 10 bytes"), ("tokens", "5 of 10 tokens")]
)
def test_a_terminal_shows_a_bar_and_nothing_is_logged(unit: str, words: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with report_progress("training", unit, console, logger) as update:
        update(5, 10, "loss 2.5")
    text = output.getvalue()
    assert "training" in text
    assert "loss 2.5" in text
    assert words in text
    assert caplog.records == []


def test_a_narrow_terminal_cuts_the_words_and_keeps_one_line_of_bar() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60, _environ={"TERM": "xterm"})
    with report_progress("training", "steps", console, logger) as update:
        update(5, 10, "loss 2.5, 12,345 tokens/s")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).rstrip("\n").rpartition("\r")[2]
    assert re.fullmatch(r"training +━{15} 0:00:00 step 5 of 10, .*… *", last), repr(last)


def test_a_terminal_without_cursor_movement_gets_lines(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with report_progress("training", "steps", console, logger):
        pass
    assert [record.getMessage() for record in caplog.records] == ["training: started"]


def test_a_bar_can_be_shown_in_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    console = Console(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    with report_progress("training", "steps", console, logger) as update:
        update(5, 10, "loss 2.5")
    file.flush()
    assert b"step 5 of 10" in raw.getvalue()


def test_an_error_passes_and_the_cursor_comes_back() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), report_progress("training", "steps", console, logger):
        raise KeyboardInterrupt
    assert output.getvalue().rfind("\x1b[?25h") > output.getvalue().rfind("\x1b[?25l")


def test_log_lines_go_where_standard_error_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = StandardError()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert sys.stderr.getvalue() == "a line\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (75, "1 min 15 s"),
        (200.4, "3 min 20 s"),
        (597.4, "9 min 55 s"),
        (598, "10 min"),
        (1140, "19 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (172_700, "47 h 58 min"),
        (273_600, "3 days 4 h"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(st.floats(0, 1e8))
def test_a_duration_is_never_off_by_more_than_a_twentieth(seconds: float) -> None:
    numbers = re.findall(r"(\d+) (\w+)", duration(seconds))
    scales = {"s": 1, "min": 60, "h": 3600, "days": 86_400}
    assert sum(int(number) * scales[unit] for number, unit in numbers) == pytest.approx(seconds, rel=0.05, abs=2.5)


def test_a_moment_is_shown_in_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, words in (("UTC", "2026-11-30 11:41 UTC"), ("Asia/Tokyo", "2026-11-30 20:41 JST (UTC+0900)")):
        monkeypatch.setenv("TZ", zone)
        progress.time.tzset()
        assert for_people("2026-11-30T11:41:34.123456+00:00") == words
    monkeypatch.undo()
    progress.time.tzset()
