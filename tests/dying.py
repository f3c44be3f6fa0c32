"""Work in a process of its own that kills itself in the middle, for tests of what a kill leaves behind."""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any


def ends(work: Callable[[], object], call: int, targets: Sequence[tuple[Any, str]]) -> bool:
    """Do ``work`` in a fork that kills itself before its ``call``-th call of any of ``targets`` (owner, name).

    True if the work ended first; a fork that ended in a third way fails the test.
    """
    child = os.fork()
    if child == 0:
        _work_and_die(work, call, targets)
    _, status = os.waitpid(child, 0)
    ended = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    assert ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return ended


def _work_and_die(work: Callable[[], object], call: int, targets: Sequence[tuple[Any, str]]) -> None:
    """Never returns."""
    left = call

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return called

    for owner, name in targets:
        setattr(owner, name, deadly(getattr(owner, name)))
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)
