"""What the doctor says of a machine, each thing broken for real."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from deployments.doctor import machine
from lmcore.store.files import boot_id, write_file
from lmcore.store.layout import prepare_store
from lmcore.store.locks import locked
from tests.conftest import REPOSITORY, start, wait_until
from tests.serving import clean_environment


def test_versions_are_those_that_were_tested() -> None:
    assert not machine.versions(REPOSITORY / "constraints.txt").remedy


def test_another_version_is_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    build = f"torch=={version('torch').partition('+')[0]}+cu999"
    constraints.write_text(f"# tested\nprefect==1.0\nnot-installed==1\n{build}\n")
    finding = machine.versions(constraints)
    assert finding.fact == f"prefect is {version('prefect')}, tested was 1.0"
    assert str(constraints) in finding.remedy


def test_a_machine_without_the_list_of_versions_is_not_wrong(tmp_path: Path) -> None:
    assert not machine.versions(tmp_path / "constraints.txt").remedy


@pytest.mark.parametrize("made", [True, False])
def test_a_good_store(tmp_path: Path, made: bool) -> None:
    store = prepare_store(tmp_path / "store") if made else tmp_path / "store"
    assert not machine.store(store).remedy


@pytest.mark.parametrize(
    ("store", "fact"),
    [("/proc/self/store", "/proc/self cannot be written"), (str(REPOSITORY / "Makefile"), "Makefile is a file")],
)
def test_a_store_that_cannot_be_written(store: str, fact: str) -> None:
    finding = machine.store(Path(store))
    assert fact in finding.fact
    assert "LM_STORE" in finding.remedy


@pytest.mark.parametrize(
    ("record", "fact"),
    [
        ({"format_version": 99}, "has format version 99"),
        ({}, "does not say which format"),
        (None, "is damaged"),
    ],
)
def test_a_store_of_another_format(tmp_path: Path, record: object, fact: str) -> None:
    (tmp_path / "format.json").write_text(json.dumps(record) if record is not None else "{")
    finding = machine.store(tmp_path)
    assert fact in finding.fact
    assert finding.remedy


def write_and_die(folder: Path) -> None:
    """A process that is killed while it writes into ``folder``."""
    code = "import sys, time, pathlib, lmcore.store.artifacts as s\n"
    code += "with s.write_artifact(pathlib.Path(sys.argv[1]), dict):\n"
    writer = start("-c", code + "    print(flush=True); time.sleep(60)", folder)
    assert writer.stdout
    writer.stdout.readline()
    writer.kill()
    writer.communicate()


@pytest.mark.parametrize("place", ["half", "datasets/half", "runs/one/half", "runs/one/checkpoints/half"])
def test_what_a_dead_process_was_writing_is_shown_and_removed(tmp_path: Path, place: str) -> None:
    write_and_die(tmp_path / place)
    finding = machine.half_written(tmp_path)
    assert ".tmp-" in finding.fact
    assert finding.fix
    finding.fix()
    assert not machine.half_written(tmp_path).remedy
    assert not list(tmp_path.rglob(".tmp-*"))


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    owned = tmp_path / f".tmp-{'0' * 8}-{'0' * 8}-1-of-another-host"
    owned.mkdir()
    write_file(tmp_path / "whole", b"")
    assert not machine.half_written(tmp_path).remedy
    assert not machine.half_written(tmp_path / "not-made-yet").remedy


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 1)
    assert not machine.disk(tmp_path / "not" / "there").remedy
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 10**21)
    assert machine.disk(tmp_path).remedy.startswith("free ")


def test_gpus_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for number in range(torch.cuda.device_count() + 1):
        (tmp_path / str(number)).mkdir()
    monkeypatch.setattr(machine, "GPUS", tmp_path)
    assert machine.gpu().remedy
    monkeypatch.setattr(machine, "GPUS", tmp_path / "none")
    assert not machine.gpu().remedy


@contextmanager
def owner(lock: Path, code: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds ``lock`` and then runs ``code``."""
    imports = "import os, sys, time, pathlib, lmcore.store.locks as s"
    process = start("-c", f"{imports}\nwith s.locked(pathlib.Path(sys.argv[1]), 'wait'):\n    {code}", lock)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_that_is_in_use_and_one_that_a_killed_process_left(tmp_path: Path) -> None:
    lock = tmp_path / "runs" / "one" / "lock"
    with owner(lock, "print(flush=True); time.sleep(60)") as process:
        assert process.stdout
        process.stdout.readline()
        files = machine.lock_files(tmp_path, tmp_path)
        assert lock in files
        assert machine.locks([lock]).fact == "1 held, each by a living process"
    assert lock.read_text()
    finding = machine.locks([lock])
    assert finding.fact.startswith("0 held")
    assert not finding.remedy


def test_a_lock_that_outlived_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with owner(
        lock, "child = os.fork(); print(child, flush=True) if child else time.sleep(60); os._exit(0)"
    ) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.wait()
        try:
            finding = machine.locks([lock])
            assert f"{lock} is held by process {child}, not by its dead owner" in finding.fact
            assert "kill -TERM" in finding.remedy
        finally:
            os.kill(child, signal.SIGKILL)
    wait_until(lambda: not machine.locks([lock]).remedy, "the end of the child")


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"host": "elsewhere", "boot": "1", "pid": 1})])
def test_an_owner_that_cannot_be_known_counts_as_living(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "lock"
    lock.write_text(text)
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not machine.locks([lock]).remedy


@pytest.mark.parametrize("name", ["runs/one/lock", "models/lm/lock", "models/lm/retraining.lock"])
def test_every_lock_of_a_store_is_looked_at(tmp_path: Path, name: str) -> None:
    with locked(tmp_path / name, "wait"):
        assert tmp_path / name in machine.lock_files(tmp_path, tmp_path)


def test_the_lock_of_a_gpu_is_looked_at_where_the_trainings_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    monkeypatch.setattr(machine, "GPU_LOCKS", tmp_path)
    with locked(tmp_path / "lm-gpu-GPU-1.lock", "wait"):
        assert tmp_path / "lm-gpu-GPU-1.lock" in machine.lock_files(tmp_path, tmp_path)


def test_a_lock_file_that_went_meanwhile_is_no_lock(tmp_path: Path) -> None:
    assert machine.locks([tmp_path / "gone"]).fact.startswith("0 held")


def test_looking_at_locks_disturbs_nobody(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, "wait"):
        assert machine.locks([lock]).fact.startswith("1 held")
        assert json.loads(lock.read_text())["boot"] == boot_id()
    with locked(lock, "refuse"):
        pass


def deployments(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """``python -m deployments ARGUMENTS`` where no server is configured."""
    environment = clean_environment(PREFECT_HOME=str(home), LM_STORE=str(home / "store"))
    command = [sys.executable, "-m", "deployments", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


def test_doctor_without_a_server(tmp_path: Path) -> None:
    done = deployments(tmp_path, "doctor")
    assert done.returncode == 1, done.stderr
    assert "ok     store: " in done.stdout
    assert "WRONG  server: none is configured\n       to fix it: lm serve, or set PREFECT_API_URL" in done.stdout


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--fix"], 2), (["doctor"], 2)])
def test_whoever_asks_what_setup_does_sets_nothing_up(tmp_path: Path, arguments: list[str], status: int) -> None:
    done = deployments(tmp_path, "setup", *arguments)
    assert done.returncode == status, done.stderr
    assert "are there" not in done.stdout
    assert not (tmp_path / "prefect.db").exists()
