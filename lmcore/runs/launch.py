"""Training in a process of its own, so that whoever started it can always get the machine back.

The child (``python -m lmcore train RUN_FOLDER``) leads its own process group. When the caller is interrupted in
any way, the group gets SIGTERM: the child saves a checkpoint and ends. When the caller dies without a
word, the kernel tells the child the same (Linux; elsewhere the child outlives it and finishes).

Nothing here imports torch but the child of several: whoever starts one has not to wait for it.

With ``train.nproc`` above 1 the child becomes torchrun's agent, whose workers are the same command again; it hands
signals on to them, and ends all when one dies.
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
from lmcore.store.locks import locked

_OF_A_GROUP = {f"{scope}{what}" for scope in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")}
_OF_A_GROUP |= {"ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"}
_SECONDS_TO_SAVE = 25
_PR_SET_PDEATHSIG = 1


def train_in_child(folder: Path, on_line: Callable[[str], None]) -> TrainingResult:
    """Train the run in ``folder`` to its end, if it has not ended yet; every line the child prints goes to ``on_line``.

    Raises TrainingKilledError when a signal ended the child (starting again resumes), StoppedError when it was asked
    to stop, TrainingError with the child's own message when it failed.
    """
    run = Run.open(folder)
    with locked(run.lock, run.config.when_locked):
        finished = finished_training(run)
    if finished is not None:
        return finished
    command = [sys.executable, "-m", "lmcore", "train", str(folder), "--parent", str(os.getpid())]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**_environment_of_one(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"},
        start_new_session=True,
    )
    message: list[str] = []  # the last line, or all from the one that begins an error
    try:
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                if not (message and message[0].startswith(ERROR_PREFIX)):
                    message.clear()
                message.append(line.rstrip())
                on_line(line.rstrip())
        status = child.wait()
    except BaseException:
        end_group(child)
        raise
    text = "\n".join(message).removeprefix(ERROR_PREFIX).strip()
    if status < 0 or status > SIGNALLED_STATUS:
        number = -status if status < 0 else status - SIGNALLED_STATUS
        raise TrainingKilledError(
            f"the training process was killed by {signal.Signals(number).name}; "
            "starting again continues from its last checkpoint"
        )
    if status == STOPPED_STATUS:
        raise StoppedError(text)
    if status != 0:
        raise TrainingError(text or f"training ended with status {status}")
    result = TrainingResult.load(folder)
    if result is None:
        raise RunError(f"training of {folder} ended well but left no training.json")
    return result


def _environment_of_one() -> dict[str, str]:
    """The environment of this process without the variables of torchrun and job schedulers.

    The child is in no group of processes, or makes its own. With them it would wait for processes that nobody starts.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_GROUP and not name.startswith("TORCHELASTIC_")
    }


def end_group(child: "subprocess.Popen[str]") -> None:
    """Let the child's process group save and end; kill what is left of it after a while."""
    for number, seconds in ((signal.SIGTERM, _SECONDS_TO_SAVE), (signal.SIGKILL, 5)):
        try:
            os.killpg(child.pid, number)
            child.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def end_with_parent(parent: int) -> None:
    """Called in the child: get SIGTERM when the process ``parent`` dies, also if it has died already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
