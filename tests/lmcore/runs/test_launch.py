"""Whoever starts a training gets the machine back, however either of the two ends."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmcore.errors import (
    INTERRUPTED_STATUS,
    STOPPED_STATUS,
    RunError,
    StoppedError,
    TrainingError,
    TrainingKilledError,
    is_transient,
)
from lmcore.runs import launch
from lmcore.runs.launch import end_group, train_in_child
from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run, TrainingResult, newest_checkpoint
from lmcore.store.locks import locked
from lmcore.training.train import train
from tests.conftest import Prepared, start, wait_for_step, wait_until

ENDLESS: dict[str, Any] = {"max_steps": 1_000_000, "log_every": 1, "validate_every": 10**6, "checkpoint_every": 10**6}


def trains(run: Run) -> bool:
    return bool(read_metrics(run.metrics))


def child_of(run: Run) -> int:
    """The process that trains the run, by its lock file."""
    return int(json.loads(run.lock.read_text())["pid"])


def is_unlocked(run: Run) -> bool:
    try:
        with locked(run.lock, "refuse"):
            return True
    except RunError:
        return False


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def assert_saved_and_ended(run: Run) -> None:
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) == read_metrics(run.metrics)[-1]["step"] < ENDLESS["max_steps"]


def once_training(run: Run, act: Callable[[int], None]) -> Callable[[str], None]:
    """An ``on_line`` that waits for the first row and then acts on the child, once."""
    acted = False

    def on_line(line: str) -> None:
        nonlocal acted
        if not acted:
            acted = True
            wait_until(lambda: trains(run), "a row of metrics")
            act(child_of(run))

    return on_line


def test_the_parent_hears_every_line_and_gets_the_result_of_a_training_in_process(prepared: Prepared) -> None:
    run, in_process = prepared.run(), prepared.run()
    lines: list[str] = []
    result = train_in_child(run.folder, lines.append)
    [line] = [line for line in lines if "parameters on cpu in fp32, step 0 of 6" in line]
    assert line.startswith(run.folder.name)
    assert result == TrainingResult.load(run.folder)
    assert result.weights == train(in_process).weights


def test_a_finished_run_starts_no_process(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared.run()
    result = train(run)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert train_in_child(run.folder, print) == result


def test_a_killed_child_is_worth_a_retry_which_ends_equal(prepared: Prepared) -> None:
    settings = {"max_steps": 300, "log_every": 1, "validate_every": 100, "checkpoint_every": 2}
    run, undisturbed = prepared.run(**settings), prepared.run(**settings)
    with pytest.raises(TrainingKilledError, match="SIGKILL") as caught:
        train_in_child(run.folder, once_training(run, lambda child: os.kill(child, signal.SIGKILL)))
    assert is_transient(caught.value)
    assert train_in_child(run.folder, lambda line: None).weights == train(undisturbed).weights


def test_a_child_that_is_asked_to_stop_says_so(prepared: Prepared) -> None:
    run = prepared.run(**ENDLESS)
    with pytest.raises(StoppedError, match="the same command continues"):
        train_in_child(run.folder, once_training(run, lambda child: os.kill(child, signal.SIGTERM)))
    assert_saved_and_ended(run)


def test_a_childs_error_is_told_in_its_own_words(prepared: Prepared) -> None:
    run = prepared.run(trainable=["*lora*"])
    with pytest.raises(TrainingError, match=r"^train\.trainable: no parameter matches '\*lora\*'") as caught:
        train_in_child(run.folder, lambda line: None)
    assert not isinstance(caught.value, TrainingKilledError)


class Cancelled(BaseException):
    """As Prefect ends a task."""


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Cancelled])
def test_an_interruption_of_the_parent_ends_the_child_with_a_checkpoint(
    prepared: Prepared, interruption: type[BaseException]
) -> None:
    run = prepared.run(**ENDLESS)
    children: list[int] = []

    def interrupt(child: int) -> None:
        children.append(child)
        raise interruption

    with pytest.raises(interruption):
        train_in_child(run.folder, once_training(run, interrupt))
    assert group_is_gone(children[0])
    assert_saved_and_ended(run)


_PARENT = """
import sys
from pathlib import Path
from lmcore.runs.launch import train_in_child

train_in_child(Path(sys.argv[1]), print)
"""


def test_a_child_whose_parent_was_killed_saves_and_ends(prepared: Prepared) -> None:
    run = prepared.run(**ENDLESS)
    with start("-c", _PARENT, run.folder) as parent:
        wait_for_step(run, 2, parent)
        assert child_of(run) != parent.pid
        parent.kill()
        parent.communicate()
    wait_until(lambda: is_unlocked(run), "the child's end")
    assert_saved_and_ended(run)


def test_a_child_whose_parent_is_long_dead_ends_before_it_trains(prepared: Prepared) -> None:
    run = prepared.run(**ENDLESS)
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    with start("-m", "lmcore", "train", run.folder, "--parent", dead.pid) as child:
        assert child.communicate() == ("", "interrupted: the same command continues\n")
    assert child.returncode == STOPPED_STATUS
    assert not run.metrics.exists()


# The third backward pass never returns, and the main thread is deaf in it as in any compiled code.
_STUCK = """
import ctypes
from lmcore.__main__ import main
from lmcore.training.train_step import TrainStep as Learner

quick, steps = Learner.backward, iter([1, 2])

def backward(learner, batch):
    found = quick(learner, batch)
    if next(steps, None) is None:
        print("stuck", flush=True)
        mutex = ctypes.create_string_buffer(64)
        while True:
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    return found

Learner.backward = backward
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, STOPPED_STATUS), (signal.SIGINT, INTERRUPTED_STATUS)])
def test_a_stop_amid_a_long_step_saves_the_steps_before_it(
    prepared: Prepared, number: signal.Signals, status: int
) -> None:
    run, undisturbed = prepared.run(log_every=1), prepared.run(log_every=1)
    with start("-c", _STUCK, "train", run.folder) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stuck\n"
        child.send_signal(number)
        child.send_signal(number)
        _, errors = child.communicate()
    assert child.returncode == status, errors
    said = "training stopped on request after step 2 of 6, checkpoint saved: the same command continues"
    assert errors.splitlines()[-1] == said
    assert read_metrics(run.metrics)[-1]["step"] == 2
    resumed, whole = train(run), train(undisturbed)
    assert (resumed.weights, resumed.tokens) == (whole.weights, whole.tokens)


# The leader ends on SIGTERM; the process it started does not want to.
_STUBBORN = "trap 'exit 0' TERM; (trap '' TERM; echo ready; while :; do sleep 100; done) & wait"


def test_the_whole_group_ends_even_where_sigterm_is_ignored() -> None:
    with subprocess.Popen(
        ["bash", "-c", _STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        end_group(child)
    assert child.returncode == 0
    wait_until(lambda: not members(child.pid), "the end of the group")


def test_a_leader_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SECONDS_TO_SAVE", 0.05)
    command = ["bash", "-c", "trap '' TERM; echo ready; while :; do sleep 100; done"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        end_group(child)
    assert child.returncode == -signal.SIGKILL


def members(group: int) -> list[int]:
    """The living processes of a group; in a container, the dead may wait long for somebody to notice."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == group and state != "Z":
            living.append(int(stat.parent.name))
    return living
