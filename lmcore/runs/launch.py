"""Training in a child process, so that the caller can always end it.

The child (``python -m lmcore train RUN_FOLDER``) leads its own process group. If the caller is interrupted, the group
gets SIGTERM: the child saves a checkpoint and ends. If the caller is killed, the kernel sends SIGTERM (on Linux;
elsewhere the child continues and finishes). With ``train.nproc`` above 1 the child becomes torchrun's agent, which runs
the same command in its workers, passes signals on to them, and ends all if one dies.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lmcore.errors import (
    ERROR_PREFIX,
    SIGNALLED_STATUS,
    STOPPED_STATUS,
    RunError,
    StoppedError,
    TrainingError,
    TrainingKilledError,
)
from lmcore.runs.run import Run, TrainingResult, finished_training
from lmcore.runs.spinning import spinning
from lmcore.store.locks import locked

_OF_A_GROUP = {f"{scope}{what}" for scope in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")}
_OF_A_GROUP |= {"ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"}
_OUTPUT = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
_SECONDS_TO_SAVE = 25
_PR_SET_PDEATHSIG = 1


def train_in_child(folder: Path, on_line: Callable[[str], None]) -> TrainingResult:
    """The result of the run in ``folder``, trained to its end. Every line that the child prints goes to ``on_line``.

    Raises TrainingKilledError when a signal killed the child (another start resumes), StoppedError when it stopped on
    request, TrainingError with the child's message when it failed.
    """
    run = Run.open(folder)
    with locked(run.lock, run.config.when_locked):
        finished = finished_training(run)
    if finished is not None:
        return finished
    child = subprocess.Popen(
        [sys.executable, "-m", "lmcore", "train", str(folder), "--parent", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment_of_one() | spinning() | _OUTPUT,
        start_new_session=True,
    )
    message: list[str] = []  # the last line, or all from the one that begins an error
    try:
        assert child.stdout is not None
        with child.stdout:
            for line in map(str.rstrip, child.stdout):
                if not (message and message[0].startswith(ERROR_PREFIX)):
                    message.clear()
                message.append(line)
                on_line(line)
        status = child.wait()
    except BaseException:
        end_group(child)
        raise
    _check_status(status, "\n".join(message).removeprefix(ERROR_PREFIX).strip())
    result = TrainingResult.load(folder)
    if result is None:
        raise RunError(f"training of {folder} ended without an error but left no training.json")
    return result


def _check_status(status: int, message: str) -> None:
    """Raise the error of a training that did not reach its end."""
    if status < 0 or status > SIGNALLED_STATUS:
        number = -status if status < 0 else status - SIGNALLED_STATUS
        raise TrainingKilledError(
            f"the training process was killed by {signal.Signals(number).name}; "
            "starting again continues from its last checkpoint"
        )
    if status == STOPPED_STATUS:
        raise StoppedError(message)
    if status != 0:
        raise TrainingError(message or f"training ended with status {status}")


def _environment_of_one() -> dict[str, str]:
    """The environment of this process without the variables of torchrun and job schedulers.

    With them the child would wait for a group of processes that nobody starts.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_GROUP and not name.startswith("TORCHELASTIC_")
    }


def end_group(child: "subprocess.Popen[str]") -> None:
    """Ask the child's process group to save and end. Kill it after _SECONDS_TO_SAVE."""
    for number, seconds in ((signal.SIGTERM, _SECONDS_TO_SAVE), (signal.SIGKILL, 5)):
        try:
            os.killpg(child.pid, number)
            child.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def end_with_parent(parent: int) -> None:
    """In the child: arrange SIGTERM for the death of the process ``parent``, even if it is dead already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
