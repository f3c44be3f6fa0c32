"""Ends every process that a test session started and left, once the session itself has ended, however that happened.

    python -m tests.leftovers PID

PID is the session's process. What it starts, directly or not, is known by an environment variable.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "LM_TEST_SESSION"
_LOOK = 0.5
"""Seconds."""


def watch() -> "subprocess.Popen[bytes]":
    """Mark this process's children from now on, and start the watcher, which is not one of them."""
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tests.leftovers", str(os.getpid())],
        cwd=Path(__file__).parents[1],
        env=unmarked,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ[MARK] = str(os.getpid())
    return watcher


def carriers(mark: str, value: str) -> dict[int, str]:
    """The living processes, by their numbers, that carry a variable with this value; their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if f"{mark}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    return found


def end(session: int) -> None:
    """Kill what the session with this process has started."""
    for pid in carriers(MARK, str(session)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main(session: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == session:
        time.sleep(_LOOK)
    end(session)


if __name__ == "__main__":
    main(int(sys.argv[1]))
