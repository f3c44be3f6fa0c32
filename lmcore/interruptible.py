"""Long calls into compiled code that signals can end.

Python handles a signal between its own steps, so that such a call would hold it up until it returns.
"""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from threading import Thread
from typing import TypeVar

_LOOK_SECONDS = 0.1

Result = TypeVar("Result")


def interruptible(work: Callable[[], Result]) -> Result:
    """What ``work`` returns or raises. It must let other threads run, and keep nothing outside memory.

    It runs in a thread of its own. When a signal's handler raises here, the thread is left behind: it ends with its
    work or with the process.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    while True:
        try:
            return future.result(_LOOK_SECONDS)
        except NotYetError:
            if future.done():  # the work itself raised it
                raise
