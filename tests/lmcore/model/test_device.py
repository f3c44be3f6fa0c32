"""One training a GPU, and memory that does not suffice is told from other errors."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmcore.errors import RunError, StoppedError
from lmcore.model.device import autocast, choose_precision, device_locked, out_of_memory, peak_memory, set_up
from lmcore.settings.config import TrainConfig

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-7"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))


def test_a_second_training_of_a_gpu_is_refused_or_waits() -> None:
    with device_locked(GPU, "wait", lambda: False):
        with (
            pytest.raises(RunError, match=r"^GPU GPU-7 is in use by .*\"pid\""),
            device_locked(GPU, "refuse", lambda: False),
        ):
            pass
        with (
            pytest.raises(StoppedError, match="while GPU GPU-7 is in use"),
            device_locked(GPU, "wait", lambda: True),
        ):
            pass
    with device_locked(GPU, "refuse", lambda: False):
        pass


def test_a_cpu_is_shared() -> None:
    cpu = torch.device("cpu")
    with device_locked(cpu, "refuse", lambda: False), device_locked(cpu, "refuse", lambda: False):
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
