"""Commands on a pseudo-terminal, as a person sees them, and Ctrl-C as a person types it."""

import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.conftest import REPOSITORY, wait_until
from tests.leftovers import carriers

CTRL_C = "\x03"
LINE = "interrupted: the same command continues"
_MARK = "LM_TERMINAL"
_SECONDS = 20
"""To end. Five on a quiet machine, two or three for most."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, and all that stood on the terminal without its colours."""

    status: int | None
    screen: str


class Terminal:
    """One command on a terminal of its own."""

    def __init__(self, home: Path, *words: object, **settings: str) -> None:
        self._mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {"PREFECT_HOME": str(home), _MARK: self._mark, "TERM": "xterm", **settings}
        command = [str(word) for word in words]
        self._seen = ""
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            cwd=REPOSITORY,
            env=environment,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(50, 200),
            timeout=180,
        )

    def wait_for(self, text: str) -> None:
        """Until the command has printed it."""
        self.child.expect(text)
        self._seen += self.child.before + self.child.after

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds; the command must not have ended."""

        def holds() -> bool:
            self._drain()
            assert self.child.isalive(), self._seen
            return condition()

        wait_until(holds, "the moment", seconds=180)

    def _drain(self) -> None:
        try:
            self._seen += self.child.read_nonblocking(100_000, timeout=0)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return

    def hears_signals(self) -> bool:
        """Whether the command itself says what Ctrl-C does, and no longer Python."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*(\w+)", status)
        return caught is not None and bool(int(caught[1], 16) >> 14 & 1)

    def runs(self, word: str) -> bool:
        """Whether a process of the command has this word in its command line."""
        return any(word in command for command in carriers(_MARK, self._mark).values())

    def end(self, *keys: str) -> Ended:
        """Type keys, then wait for the end; nothing of the command is left after it."""
        started = time.monotonic()
        for key in keys:
            self.child.send(key)
            time.sleep(0.1)
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert not keys or time.monotonic() - started < _SECONDS
        wait_until(lambda: not carriers(_MARK, self._mark), "the end of its processes")
        screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen + self.child.before).replace("^C", "")
        return Ended(self.child.exitstatus, screen.replace("\r\n", "\n"))

    def vanish(self) -> None:
        """Close the terminal itself, as a lost connection does, and wait for the end of all processes."""
        self.child.ptyproc.fileobj.close()
        self.child.child_fd, self.child.closed = -1, True
        wait_until(lambda: not carriers(_MARK, self._mark), "the end of its processes", seconds=60)
        os.waitpid(self.child.pid, 0)

    def close(self) -> None:
        if not self.child.closed:
            self.child.close(force=True)


Start = Callable[..., Terminal]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start ``python WORDS`` on a terminal."""
    started = []

    def on_terminal(*words: object, program: object = sys.executable, **settings: str) -> Terminal:
        started.append(Terminal(home, program, *words, **settings))
        return started[-1]

    yield on_terminal
    for terminal in started:
        terminal.close()


def assert_interrupted(ended: Ended, status: int = 130, line: str = LINE) -> None:
    """One line says so, and nothing looks like a crash."""
    assert ended.status == status, ended.screen
    assert ended.screen.splitlines().count(line) == 1, ended.screen
    for word in ("Traceback", "Crash", "Error", "Exception"):
        assert word not in ended.screen, ended.screen
