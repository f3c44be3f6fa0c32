"""One training cancelled in each of its phases: every start goes on where the one before was cancelled."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.doctor import machine
from lmcore.runs.run import step_of
from tests.conftest import tiny_config, wait_until, write_corpus
from tests.e2e.test_faults import checkpoints
from tests.serving import FLOW, SECONDS, TRAINING, Api, Serving

pytestmark = pytest.mark.e2e


def settings(folder: Path) -> dict[str, Any]:
    """Many chunks, a checkpoint at nearly every moment, an evaluation of a second or more, a slot of the GPU."""
    train = {"max_steps": 20, "checkpoint_every": 2, "validate_every": 100, "validation_tokens": 1000}
    config = tiny_config(write_corpus(folder / "corpus", documents=3000), folder / "store", **train)
    changes = {"corpus": {"chunk_bytes": 5000, "validation_fraction": 0.3}, "model": {"width": 256}}
    content = config.model_dump(mode="json")
    return content | {section: content[section] | change for section, change in changes.items()}


def task_states(api: Api, run: str) -> dict[str, str]:
    """The names of the states of the run's tasks, by the first words of the tasks' names."""
    tasks = api.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {task["name"].split()[0]: task["state"]["name"] for task in tasks if task["state"]}


def wait_for_stop(pid: int) -> None:
    """Return when all its threads have stopped; one that still ran would take a later signal first."""

    def is_stopped() -> bool:
        threads = (Path("/proc") / str(pid) / "task").iterdir()
        return all("T (stopped)" in (thread / "status").read_text() for thread in threads)

    wait_until(is_stopped, "the stop")


def is_asked_to_end(pid: int) -> bool:
    """True if SIGTERM waits for a process that is stopped."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def stopped_inside(serving: Serving, process: str, is_inside: Callable[[], bool]) -> int:
    """Stop the process at a moment when it ``is_inside``; its number."""
    while True:
        wait_until(is_inside, "the phase", SECONDS)
        serving.kill(process, number=signal.SIGSTOP)
        pids = serving.processes(process)
        for pid in pids:
            wait_for_stop(pid)
        if len(pids) == 1 and is_inside():  # two: one was stopped as it started another, which still bears its name
            return pids[0]
        serving.kill(process, number=signal.SIGCONT)


def cancel_inside(serving: Serving, config: dict[str, Any], process: str, is_inside: Callable[[str], bool]) -> str:
    """Start a run and cancel it while its ``process`` is inside a phase, which lasts until the signal has come."""
    run = serving.api.start("pretrain", config)
    pid = stopped_inside(serving, process, lambda: is_inside(run))
    click = time.perf_counter()
    serving.api.cancel(run)
    wait_until(lambda: is_asked_to_end(pid), "the signal")
    serving.kill(process, number=signal.SIGCONT)
    wait_until(lambda: not serving.processes(FLOW) + serving.processes(TRAINING), "the end of all processes")
    print(f"{time.perf_counter() - click:.1f} s from the click to no process")
    assert serving.api.ended(run)["type"] == "CANCELLED"
    return run


def check_that_nothing_is_left(serving: Serving, store: Path) -> None:
    assert not serving.processes(FLOW) + serving.processes(TRAINING)
    assert serving.api.call("/v2/concurrency_limits/gpu")["active_slots"] == 0
    assert machine.locks(machine.lock_files(store, serving.home)).fact.startswith("0 held")
    assert not list(store.rglob(".tmp-*"))


def test_a_cancel_in_any_phase_costs_nothing(serving: Serving, tmp_path: Path) -> None:
    api, store, config = serving.api, tmp_path / "store", settings(tmp_path)

    cancel_inside(serving, config, FLOW, lambda run: bool(list(store.glob("shards/.tmp-*"))))
    check_that_nothing_is_left(serving, store)
    shards = {folder: folder.stat().st_mtime_ns for folder in store.glob("shards/*")}
    assert shards
    assert not list(store.glob("datasets/*/manifest.json"))

    def writes_checkpoint(run: str) -> bool:
        return bool(checkpoints(store)) and bool(list(store.glob("runs/*/checkpoints/.tmp-*")))

    run = cancel_inside(serving, config, TRAINING, writes_checkpoint)
    check_that_nothing_is_left(serving, store)
    assert api.starts(run) == [0]
    assert shards.items() <= {folder: folder.stat().st_mtime_ns for folder in store.glob("shards/*")}.items()
    reached = step_of(checkpoints(store)[-1])

    def evaluates(run: str) -> bool:
        return task_states(api, run).get("evaluate") == "Running" and not list(store.glob("runs/*/evaluation.json"))

    run = cancel_inside(serving, config, FLOW, evaluates)
    check_that_nothing_is_left(serving, store)
    assert api.starts(run) == [reached] != [0]

    def exports(run: str) -> bool:
        return any(path.is_dir() for path in store.glob("runs/*/.tmp-*"))

    run = cancel_inside(serving, config, FLOW, exports)
    check_that_nothing_is_left(serving, store)
    assert not api.starts(run)
    assert not list(store.glob("runs/*/model"))

    run = api.start("pretrain", config)
    assert api.ended(run)["type"] == "COMPLETED"
    states = task_states(api, run)
    assert {states[task] for task in ("tokenize", "train", "evaluate")} == {"Cached"}
    assert states["export"] == "Completed"
