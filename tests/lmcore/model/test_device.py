"""A GPU computes for one at a time, and memory that does not suffice is told from other errors."""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmcore.errors import ConfigError, RunError, StoppedError
from lmcore.model import device
from lmcore.model.device import (
    autocast,
    choose_precision,
    device_of_worker,
    gpus_of_workers,
    held_device,
    held_gpus,
    out_of_memory,
    peak_memory,
    set_up,
)
from lmcore.settings.config import TrainConfig
from tests.conftest import wait_until

GPU = torch.device("cuda", 0)
_COUNT = 3
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Some GPUs that compute nothing, and real locks. Returns the folder of the locks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: _COUNT)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}"))
    monkeypatch.setattr(device, "GPU_LOCKS", tmp_path)
    return tmp_path


def never() -> bool:
    return False


def test_the_first_free_gpu_is_taken() -> None:
    with held_device("auto") as first, held_device("cuda") as second:
        assert (first, second) == (torch.device("cuda", 0), torch.device("cuda", 1))
        with held_gpus(1, "refuse", never) as numbers:
            assert numbers == [2]
    with held_gpus(_COUNT, "refuse", never) as numbers:
        assert numbers == [0, 1, 2]


def test_who_finds_no_free_gpu_is_refused_or_waits() -> None:
    with held_gpus(2, "wait", never):
        with pytest.raises(RunError, match=r"^GPU GPU-1 is in use by process \d+ on "), held_gpus(2, "refuse", never):
            pass
        with pytest.raises(StoppedError, match="while GPU GPU-1 is in use"), held_gpus(2, "wait", lambda: True):
            pass
        with held_gpus(1, "refuse", never) as numbers:  # what the others had taken is free again
            assert numbers == [2]


def test_more_gpus_than_there_are_is_an_error() -> None:
    with (
        pytest.raises(ConfigError, match=r"train\.nproc is 4, and this machine has 3 GPUs"),
        held_gpus(4, "wait", never),
    ):
        pass


def test_a_cpu_is_shared() -> None:
    with held_gpus(_COUNT, "wait", never), held_device("cpu", "refuse") as one, held_device("cpu", "refuse") as other:
        assert one == other == torch.device("cpu")


def _take_turns(folder: Path, counts: list[int]) -> None:
    """Hold so many GPUs again and again; a mark in the folder says who has each."""
    for count in counts:
        with held_gpus(count, "wait", never) as numbers:
            assert len(set(numbers)) == count
            for number in numbers:
                (folder / f"used-{number}").touch(exist_ok=False)
            time.sleep(0.002)
            for number in numbers:
                (folder / f"used-{number}").unlink()


def test_overlapping_trainings_never_share_a_gpu_and_never_wait_for_each_other(machine: Path) -> None:
    processes = multiprocessing.get_context("fork")
    wanted = [[2] * 20, [2] * 20, [3] * 20, [1] * 20, [1, 2, 3] * 7]
    workers = [processes.Process(target=_take_turns, args=(machine, counts)) for counts in wanted]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def test_a_gpu_is_free_when_its_holder_is_killed(machine: Path) -> None:
    def hold() -> None:
        with held_gpus(_COUNT, "wait", never):
            (machine / "held").touch()
            time.sleep(600)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    wait_until((machine / "held").exists, "the holder")
    with pytest.raises(RunError), held_gpus(1, "refuse", never):
        pass
    holder.kill()
    holder.join()
    with held_gpus(_COUNT, "refuse", never):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_waits_for_the_same_gpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    def hold_as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(RunError, match="GPU GPU-0 is in use"), held_gpus(_COUNT, "refuse", never):
            pass
        with held_gpus(2, "wait", never) as numbers:
            assert numbers == [1, 2]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        os.chmod(folder, 0o1777)
        patched.setattr(device, "GPU_LOCKS", Path(folder))
        umask = os.umask(0o077)
        try:
            with held_gpus(_COUNT, "wait", never):
                pass  # all files are there
            with held_device("cuda"):
                other = multiprocessing.get_context("fork").Process(target=hold_as_nobody)
                other.start()
                other.join(60)
        finally:
            os.umask(umask)
        assert other.exitcode == 0


def test_workers_see_the_gpus_that_their_starter_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-5,6")
    monkeypatch.delenv("LM_HELD_GPUS", raising=False)
    with held_device("cuda"), gpus_of_workers(TrainConfig(nproc=2), "wait", never):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-5,6"
        with (
            device_of_worker("cuda", 0, "refuse", never) as first,
            device_of_worker("cuda", 1, "refuse", never) as second,
        ):
            assert (first.index, second.index) == (0, 1)


def test_the_first_worker_of_a_persons_torchrun_holds_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("LM_HELD_GPUS", raising=False)
    with device_of_worker("cuda", 1, "refuse", never), device_of_worker("cuda", 0, "refuse", never):
        with held_gpus(1, "refuse", never) as numbers:
            assert numbers == [2]
        with pytest.raises(RunError), device_of_worker("cuda", 0, "refuse", never):
            pass


def test_only_a_lack_of_memory_is_one() -> None:
    def too_much() -> None:
        torch.empty(2**60)

    def wrong() -> None:
        raise RuntimeError("shapes do not fit")

    assert out_of_memory(too_much)
    assert not out_of_memory(lambda: None)
    with pytest.raises(RuntimeError, match="shapes"):
        out_of_memory(wrong)


def test_memory_is_in_bytes() -> None:
    assert peak_memory(torch.device("cpu")) > 50 * 2**20


def test_a_cpu_computes_in_fp32_unless_told_otherwise() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("fp16", torch.device("cpu")) == "fp16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_forward_pass_multiplies_in_its_precision_and_weights_stay(precision: Any, dtype: torch.dtype) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with autocast(precision, torch.device("cpu")):
        product = weight @ weight
    product.sum().backward()
    assert product.dtype == dtype
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("tf32", "matmul"), [(True, "high"), (False, "highest")])
def test_a_gpu_is_set_up_as_asked(
    deterministic: bool, tf32: bool, matmul: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_up(GPU, TrainConfig(tf32=tf32, deterministic=deterministic))
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    finally:
        set_up(GPU, TrainConfig(tf32=False))
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
