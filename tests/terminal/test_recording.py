"""The recording of a first run: what it shows, and that nothing of the machine that made it is in it."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.terminal.record import TITLE, Event, edited, write

CAST = REPOSITORY / "docs" / "first-run.cast"
HOME = Path("/home/somebody")


@pytest.fixture(scope="module")
def screen() -> str:
    _, *events = map(json.loads, CAST.read_text(encoding="utf-8").splitlines())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(text for _, _, text in events))


def test_it_is_a_small_asciicast() -> None:
    header, *events = map(json.loads, CAST.read_text(encoding="utf-8").splitlines())
    assert CAST.stat().st_size < 150_000
    assert (header["version"], header["title"]) == (2, TITLE)
    assert {kind for _, kind, _ in events} == {"o"}
    times = [time for time, _, _ in events]
    assert times == sorted(times)
    assert times[-1] < 300


def test_it_goes_from_clone_to_ctrl_c(screen: str) -> None:
    story = ("git clone", "make demo", "bits per byte", "make serve", "Prefect UI: http://127.0.0.1:4200")
    story += ("<title>Prefect Server</title>", "^Cstopped\r\n", "exit status 130")
    places = [screen.index(each) for each in story]
    assert places == sorted(places)
    assert "Traceback" not in screen


def test_no_path_of_a_machine_is_in_it(screen: str) -> None:
    absolute = set(re.findall(r"(?<![\w.~:/])/[a-z]+/[^\s\"']*", screen))
    assert not absolute


def test_the_home_is_hidden_and_bars_and_pauses_are_cut(tmp_path: Path) -> None:
    frames = [Event(10 + number, f"\r\x1b[2Kstep {number}") for number in range(20)]
    events = [Event(3.0, "in /home/some"), Event(3.5, "body/lm\r\n"), *frames, Event(500.0, "\r\x1b[2Kdone\r\n")]
    found = edited(events, HOME)
    assert "".join(event.text for event in found) == (
        "in ~/lm\r\n\r\x1b[2Kstep 0\r\x1b[2Kstep 8\r\x1b[2Kstep 16\r\x1b[2Kdone\r\n"
    )
    assert [event.time for event in found] == [0.0, 0.5, 1.5, 2.5, 3.5, 4.5]
    write(tmp_path / "a.cast", found)
    assert json.loads((tmp_path / "a.cast").read_text().splitlines()[1]) == [0.0, "o", "in ~"]


def test_a_path_of_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a path of this machine"):
        write(tmp_path / "a.cast", [Event(0.0, f"in {REPOSITORY}\r\n")])
    assert not list(tmp_path.iterdir())
