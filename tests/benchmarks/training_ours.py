"""Our training, and its parts, each in a process of its own; run by training.py.

python training_ours.py LOOP SPEC.json
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import rounds, tell

import lmcore.training.train_step
from lmcore.dataset.loader import loader, to_device
from lmcore.dataset.mixture import open_blocks
from lmcore.model.device import autocast, choose_device, choose_precision, set_up
from lmcore.model.loss import NextTokenLoss, compile_model
from lmcore.model.model import flops_per_token, new_model
from lmcore.runs.run import Run
from lmcore.training.checkpoint import CheckpointWriter
from lmcore.training.optim import Optimizers
from lmcore.training.train import train

Spec = dict[str, Any]
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
TIMED_PRODUCTS = 10


def ours(spec: Spec) -> None:
    """``lmcore.training.train.train``. With ``attention``, transformers' attention of that name instead of ours."""
    run = Run.open(Path(spec["run"]))
    if spec.get("attention"):
        _attend_as(spec["attention"])
    flops = flops_per_token(new_model(run), run.config.dataset.block_size)
    writers = _spied_writers()
    done = rounds(spec, finish=lambda: [writer.wait() for writer in writers], flops_per_token=flops)
    train(run, should_stop=lambda: bool(next(done)))


def _attend_as(name: str) -> None:
    make = lmcore.training.train_step.new_model

    def made(run: Run, resumes: bool = False) -> Any:
        model = make(run, resumes)
        model.set_attn_implementation(name)
        return model

    lmcore.training.train_step.new_model = made


def _spied_writers() -> set[CheckpointWriter]:
    """Those that ``save`` was called of; how long the loop stood in a call is told."""
    writers, save = set(), CheckpointWriter.save

    def timed(self: CheckpointWriter, *arguments: Any) -> None:
        start = time.perf_counter()
        save(self, *arguments)
        tell(on_path=time.perf_counter() - start)
        writers.add(self)

    CheckpointWriter.save = timed  # type: ignore[method-assign]
    return writers


def bare(spec: Spec) -> None:
    """Forward, backward and optimizer on one batch, and nothing else; with ``clip`` gradients are clipped too."""
    run = Run.open(Path(spec["run"]))
    config = run.config.train
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    set_up(device, config)
    model = new_model(run).to(device)
    loss = NextTokenLoss(model, config.loss_chunk_tokens)
    compile_model(loss, config.compile, device)
    optimizers = Optimizers.from_config(model, config)
    batch = {f"{name}_BT": rows for name, rows in to_device(first_batch(run, 0), device).items()}
    tokens, parameters, done = batch["labels_BT"].numel(), list(model.parameters()), rounds(spec)
    loss.train()
    while True:
        with autocast(precision, device):
            nats = loss(**batch)
        (nats / tokens).backward()
        if spec["clip"]:
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        for part in optimizers.parts:
            part.step()
            part.zero_grad()
        next(done)


def first_batch(run: Run, step: int) -> Any:
    dataset, size = run.config.dataset, run.config.train.batch_size
    blocks, first = open_blocks(run.dataset_folder, dataset), step * size
    return next(loader(blocks, size, first_block=first, last_block=first + size, seed=0))


def feeding(spec: Spec) -> None:
    """Seconds from a dataset's folder to the first batch of a resume."""
    run, start = Run.open(Path(spec["run"])), time.perf_counter()
    first_batch(run, spec["step"])
    tell(seconds=time.perf_counter() - start)


def matmul(spec: Spec) -> None:
    """TFLOP/s of a large product of random matrices, bf16 on a GPU and fp32 on a CPU."""
    device = spec["device"]
    size, dtype = MATMUL_SIZE[device], torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    products(3)
    tell(tflops=TIMED_PRODUCTS * 2 * size**3 / products(TIMED_PRODUCTS) / 1e12)


LOOPS: dict[str, Callable[[Spec], None]] = {loop.__name__: loop for loop in (ours, bare, feeding, matmul)}

if __name__ == "__main__":
    LOOPS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
