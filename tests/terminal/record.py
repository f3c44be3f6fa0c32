"""Records docs/first-run.cast, an asciicast v2 of a pseudo-terminal: from clone to the served UI and Ctrl-C.

    python -m tests.terminal.record docs/first-run.cast

A real shell runs every command, in a new home. Left out are the set-up of .venv, which borrows the packages of this
Python, and all time in which nothing but a progress bar moves. No path of this machine remains: the home is shown as
``~``. ``asciinema play`` shows the file.
"""

import json
import os
import re
import site
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

REPOSITORY = Path(__file__).parents[2]
COLUMNS, ROWS = 100, 30
TITLE = "lm-pipeline, from clone to the UI (set-up of .venv and idle times are cut)"
CTRL_C = "\x03"
_SECONDS = 1800
"""For the longest command."""
_SECONDS_OF_A_KEY = 0.04
_LONGEST_PAUSE = 1.0
"""Seconds between two events of the file."""
_SECONDS_BETWEEN_FRAMES = 8.0
"""Of a progress bar."""
_FRAME = re.compile(r"(\r\x1b\[2K[^\r\n]*)(?=\r\x1b\[2K)")
"""One state of a bar that the next one erases as a whole."""
_PROMPT = "\\[\\e[1;32m\\]\\w$\\[\\e[0m\\] "
_PROMPT_SEEN = r"~(/lm)?\$\x1b"
_CLONE = "git clone --quiet lm-pipeline.git lm && cd lm"
_ASK = "((until curl -sfo page.html localhost:{port}; do sleep 1; done; grep -o '<title>.*</title>' page.html) &)"
"""In the background of the shell, whose foreground the server is about to take."""


@dataclass
class Event:
    """What the terminal got at one moment, in seconds."""

    time: float
    text: str


@dataclass
class Recorder:
    """Stands where pexpect writes what it reads."""

    events: list[Event] = field(default_factory=list)

    def write(self, text: str) -> None:
        self.events.append(Event(time.monotonic(), text))

    def flush(self) -> None:
        """As a file has it."""


def record(home: Path, port: int) -> list[Event]:
    """Run the whole story in a shell whose home is ``home``."""
    recorder = Recorder()
    (home / "lm-pipeline.git").symlink_to(REPOSITORY)
    shell = _shell(home, port)
    shell.logfile_read = recorder
    shell.expect(_PROMPT_SEEN)
    _run(shell, _CLONE)
    _borrow_packages(home / "lm")
    _run(shell, "make demo")
    _run(shell, "ls store store/runs/*")
    _run(shell, _ASK.format(port=port))
    _type(shell, "make serve")
    shell.expect_exact("</title>")
    shell.expect_exact("polling for scheduled runs")
    time.sleep(3)
    shell.send(CTRL_C)
    shell.expect(_PROMPT_SEEN)
    _run(shell, "echo exit status $?")
    shell.sendeof()
    shell.expect(pexpect.EOF)
    return recorder.events


def _shell(home: Path, port: int) -> "pexpect.spawn[str]":
    kept = ("PATH", "LANG", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "TERM": "xterm-256color", "PS1": _PROMPT, "PREFECT_SERVER_API_PORT": str(port)}
    size = {"dimensions": (ROWS, COLUMNS), "encoding": "utf-8", "codec_errors": "replace", "timeout": _SECONDS}
    return pexpect.spawn("bash", ["--norc", "--noprofile"], cwd=home, env=environment, **size)


def _type(shell: "pexpect.spawn[str]", command: str) -> None:
    for key in command + "\n":
        shell.send(key)
        time.sleep(_SECONDS_OF_A_KEY)


def _run(shell: "pexpect.spawn[str]", command: str) -> None:
    """Type a command and wait for the prompt after it."""
    _type(shell, command)
    shell.expect_exact("\n")
    shell.expect(_PROMPT_SEEN)


def _borrow_packages(clone: Path) -> None:
    """What set-up does in minutes: a .venv of the clone, with the packages of this Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    [packages] = (clone / ".venv" / "lib").glob("python*/site-packages")
    paths = [str(clone), *(path for path in sys.path if path in site.getsitepackages() or "site-packages" in path)]
    (packages / "borrowed.pth").write_text("\n".join(paths) + "\n")
    (clone / ".venv" / ".installed").touch()


def edited(events: list[Event], home: Path) -> list[Event]:
    """Without the home's path, with fewer frames of bars and without long pauses; the first event is at 0."""
    whole = "".join(event.text for event in events)
    moments = [event.time for event in events for _ in event.text]
    kept = _without_frames(whole, moments)
    pieces = _home_hidden(whole, kept, str(home))
    return _without_pauses([Event(moments[position], text) for position, text in pieces])


def _without_frames(whole: str, moments: list[float]) -> list[bool]:
    """For each character whether it stays."""
    kept, last = [True] * len(whole), -_SECONDS_BETWEEN_FRAMES
    for frame in _FRAME.finditer(whole):
        if moments[frame.start()] - last < _SECONDS_BETWEEN_FRAMES:
            kept[frame.start() : frame.end()] = [False] * len(frame[0])
        else:
            last = moments[frame.start()]
    return kept


def _home_hidden(whole: str, kept: list[bool], home: str) -> list[tuple[int, str]]:
    """Characters that stay, with their positions; the home is one of them."""
    pieces, position = [], 0
    while position < len(whole):
        is_home = whole.startswith(home, position)
        if kept[position]:
            pieces.append((position, "~" if is_home else whole[position]))
        position += len(home) if is_home else 1
    return pieces


def _without_pauses(characters: list[Event]) -> list[Event]:
    """Characters of one moment become one event."""
    events: list[Event] = []
    before = characters[0].time
    for each in characters:
        pause, before = min(each.time - before, _LONGEST_PAUSE), each.time
        if events and pause == 0:
            events[-1].text += each.text
        else:
            events.append(Event(events[-1].time + pause if events else 0.0, each.text))
    return events


def write(path: Path, events: list[Event]) -> None:
    """An asciicast v2: a line for the header, one for each event."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": TITLE, "env": {"TERM": "xterm-256color"}}
    rows = [header, *([round(event.time, 3), "o", event.text] for event in events)]
    text = "".join(event.text for event in events)
    if any(str(trace) in text for trace in (REPOSITORY, tempfile.gettempdir())):
        raise SystemExit(f"{path} is not written: a path of this machine is in what the terminal showed")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(path: Path, port: int = 4200) -> None:
    with tempfile.TemporaryDirectory(prefix="lm-") as folder:
        home = Path(folder)
        write(path, edited(record(home, port), home))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
