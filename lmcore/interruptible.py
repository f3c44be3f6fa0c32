"""Signals end a long call into compiled code.

Python handles a signal between its own instructions, so in the main thread such a call would delay it until it returns.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def interruptible(work: Callable[[], Result]) -> Result:
    """What ``work`` returns or raises. It must let other threads run, and write no files.

    It runs in a thread of its own. When a signal's handler raises here, the thread is abandoned: it ends with its
    work or with the process.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result()  # signals interrupt this wait
