"""Two ranks train as one does, and what one has begun the other number goes on with."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmcore.errors import ConfigError, StoppedError, TrainingKilledError
from lmcore.model.model import trained_model
from lmcore.runs.launch import train_in_child
from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run, TrainingResult, newest_checkpoint
from lmcore.training.train import train
from tests.conftest import Prepared, wait_until

# Dropout draws other numbers in two ranks than in one. 5 blocks: every second batch has a row more in one rank.
SETTINGS: dict[str, Any] = {"max_steps": 8, "log_every": 1, "validate_every": 4, "checkpoint_every": 3, "batch_size": 5}
SETTINGS |= {"model": {"dropout": 0.0}, "max_skipped": 1}


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run.metrics)]


def train_by_two(run: Run) -> TrainingResult:
    return train_in_child(run.folder, print)


@pytest.fixture(scope="module")
def alone(prepared: Prepared) -> Run:
    run = prepared.run(**SETTINGS)
    train(run)
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_and_resume_from_one(prepared: Prepared, alone: Run, parallel: str) -> None:
    """The first steps by one rank, the others by two in micro-batches, the last again by one."""
    run = prepared.run(**SETTINGS, nproc=2, parallel=parallel, micro_batch_size=2, max_minutes=1e-9)
    with pytest.raises(StoppedError):
        train(run)  # in this process: one rank, one step
    record = run.folder / "config.json"
    record.write_text(record.read_text().replace('"max_minutes": 1e-09', '"max_minutes": 0.0'))
    result = train_by_two(Run.open(run.folder))
    assert losses(run) == pytest.approx(losses(alone), abs=2e-5)
    assert result.tokens == train(alone).tokens
    saved, expected = (load_file(each.checkpoint / "model.safetensors") for each in (result, train(alone)))
    assert all(torch.allclose(saved[name], expected[name], atol=1e-4) for name in expected)
    random = load_file(result.checkpoint / "random.safetensors")
    assert {"cpu-0", "cpu-1"} <= random.keys()
    assert not torch.equal(random["cpu-0"], random["cpu-1"])
    trained_model(run, result.checkpoint)


def test_a_dead_rank_ends_all_and_the_same_command_goes_on(prepared: Prepared, alone: Run) -> None:
    run = prepared.run(**{**SETTINGS, "max_steps": 3000, "validate_every": 1000}, nproc=2)
    killed: list[int] = []

    def kill_one(line: str) -> None:
        if "parameters on cpu" in line:
            wait_until(lambda: newest_checkpoint(run.checkpoints) is not None, "a checkpoint")
            killed.extend(workers_of(run))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingKilledError, match="SIGKILL"):
        train_in_child(run.folder, kill_one)
    assert len(killed) == 2
    wait_until(lambda: not any(map(is_alive, killed)), "the end of the other rank")
    assert newest_checkpoint(run.checkpoints) is not None


def test_a_stop_of_the_agent_is_a_checkpoint_of_all(prepared: Prepared) -> None:
    run = prepared.run(**{**SETTINGS, "max_steps": 3000, "validate_every": 1000}, nproc=2)

    def stop(line: str) -> None:
        if "parameters on cpu" in line:
            wait_until(lambda: len(read_metrics(run.metrics)) > 1, "steps")
            os.kill(int(status_of(workers_of(run)[0])[1]), signal.SIGTERM)

    with pytest.raises(StoppedError):
        train_in_child(run.folder, stop)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) == read_metrics(run.metrics)[-1]["step"]


def test_more_gpus_than_there_are_is_an_error(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of torchrun")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"train\.nproc asks for GPU 1, this machine has 1"):
        train(prepared.run(device="cuda"))


def workers_of(run: Run) -> list[int]:
    """Processes that torchrun's agent started for this run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            is_ours = str(run.folder).encode() in arguments and b"--parent" not in arguments
            if is_ours and is_alive(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


def status_of(pid: int) -> list[str]:
    """State, parent ... of a process; state Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z"]


def is_alive(pid: int) -> bool:
    return status_of(pid)[0] != "Z"
