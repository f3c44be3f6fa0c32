"""Ctrl-C and other signals end a command with one line and an exit status, at any moment.

``end_at_once`` is for phases without anything to clean up, such as imports. During the work ``Interruption`` turns the
signal into an exception, so that holders of locks, temporary files and child processes clean up. A training uses
``StopRequest`` and saves. Only the first signal counts; later ones must not disturb the cleaning up.

A signal that is ignored when the command starts stays ignored. A shell ignores SIGINT for background jobs of a script,
and nohup ignores SIGHUP. SIGTERM ends such a command.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

from lmcore.errors import INTERRUPTED_STATUS, STOPPED_STATUS

Result = TypeVar("Result")
_LINE = ["interrupted: the same command continues"]
"""The line that a stopped command prints."""
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PACKAGES, _PROGRAMS = ("lmcore", "flows", "deployments"), ("lm",)
_SECONDS_TO_LEAVE = 0.05
"""Seconds until a destructor or a callback has returned."""
_SECONDS_FOR_THE_LOOP = 1.0
"""Seconds in which the loop may reach the end of its step."""


def say_when_stopped(line: str) -> None:
    """Set the line of a command that is always ended by a signal, such as a server."""
    _LINE[0] = line


class Terminated(BaseException):
    """SIGTERM or SIGHUP. Like KeyboardInterrupt it is not an Exception, so it is not handled as a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(_LINE[0])
        self.signal = number


def is_command() -> bool:
    """Whether this process was started as a command of this program, and not as one that imports it."""
    words = sys.orig_argv
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].partition(".")[0] in _PACKAGES
    return os.path.basename(sys.argv[0]) in _PROGRAMS


def end_at_once() -> None:
    """From now on a signal ends this process immediately."""
    _handle(lambda number, _: leave(number))


class Interruption:
    """From now on the first signal raises KeyboardInterrupt (SIGINT) or Terminated in the main thread."""

    def __init__(self) -> None:
        self.signal = 0
        """The signal that was received, even if its exception was caught. 0: none."""
        _handle(self._ask)
        resend_lost((KeyboardInterrupt, Terminated), self._ask_again)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def _ask_again(self, number: int) -> None:
        self.signal = 0
        os.kill(os.getpid(), number)


class StopRequest:
    """Whether a signal was received, for a loop of steps that saves and ends by itself.

    Before the end of the first step there is nothing to save, so a signal ends the process at once. A thread receives
    the signals, because the main thread receives none in compiled code: minutes in a large step on a CPU.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._save: Callable[[], None] | None = None
        """None until the end of the first step."""
        self._changing = threading.Lock()
        """Held while the loop changes what is saved."""
        self._changing.acquire()
        _handle(_heard_elsewhere)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(reading,), daemon=True, name="signals").start()

    def __call__(self) -> bool:
        return bool(self.signal)

    @contextmanager
    def unchanged(self, save: Callable[[], None], can_save: bool) -> Iterator[None]:
        """The part of a step that changes nothing that is saved.

        If it takes long, a signal calls ``save`` in another thread, if ``can_save``, and ends the process. From the
        second step on, the loop first gets a moment to save by itself.
        """
        if can_save:
            self._changing.release()
        try:
            yield
        finally:
            if can_save:
                self._changing.acquire()
            self._save = save

    def _hear(self, pipe: int) -> None:
        while True:
            number = os.read(pipe, 1)[0]
            # Another handler that was installed since decides instead.
            if number in _ASKING and signal.getsignal(number) is _heard_elsewhere and not self.signal:
                self._ask(number)

    def _ask(self, number: int) -> None:
        if self._save is None:
            leave(number)
        self.signal = number
        time.sleep(_SECONDS_FOR_THE_LOOP)
        with self._changing:
            self._save()
            leave(number)


def _heard_elsewhere(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing: the signal is neither ignored nor kills the process."""


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def resend_lost(kind: Any, send: Callable[[int], None]) -> None:
    """Send the signal again if Python lost its exception of this kind, or of one of these kinds.

    If a signal handler raises in a destructor or in the callback of a weak reference, Python prints the exception and
    continues. Importing torch alone runs thousands of these.
    """
    usual = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, kind):
            # Later and from another thread; raised in here, it would be lost again.
            number = getattr(lost.exc_value, "signal", signal.SIGINT)
            threading.Timer(_SECONDS_TO_LEAVE, send, (number,)).start()
        else:
            usual(lost)

    sys.unraisablehook = hook


def leave(number: int) -> NoReturn:
    """End this process because of a signal, after all cleaning: say so and go.

    Exit handlers are left out. Those of libraries wait for threads that nothing will end.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # the terminal is gone, or a write was interrupted
            stream.flush()
    with suppress(OSError):
        os.write(2, f"{_LINE[0]}\n".encode())
    os._exit(INTERRUPTED_STATUS if number == signal.SIGINT else STOPPED_STATUS)


def interruptible(work: Callable[[], Result]) -> Result:
    """What ``work``, a long call into compiled code, returns or raises; a signal ends the wait for it.

    In the main thread such a call would delay the signal, so ``work`` runs in another one. It must let other threads
    run, and write no files. If a signal's handler raises here, the thread ends with its work or with the process.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()  # signals interrupt this wait
