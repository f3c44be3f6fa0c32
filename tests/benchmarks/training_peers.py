"""How others train GPT-2 of transformers on the same ids; run by training.py in an environment of the peers.

python training_peers.py LOOP SPEC.json

A loop has settings of two kinds: equal (dropout 0, AdamW in one fused kernel, decay on matrices, gradients clipped, the
same precision, nothing compiled), or its own, as its documentation or example has them.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import rounds
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel

Spec = dict[str, Any]
RATE, BETAS, DECAY, CLIP, LOG_EVERY = 1e-3, (0.9, 0.95), 0.1, 1.0, 10


def model_of(spec: Spec) -> Any:
    """At equal settings without dropout; else with what GPT2Config says, 0.1."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) if spec["equal"] else {}
    return GPT2LMHeadModel(GPT2Config(**spec["model"], **dropout)).to(spec["device"])


def fused_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)


def autocast(spec: Spec) -> AbstractContextManager[Any]:
    return torch.autocast(spec["device"], torch.bfloat16) if spec["precision"] == "bf16" else nullcontext()


class Blocks(Dataset[Any]):
    """Blocks by number; labels are the inputs, transformers shifts them."""

    def __init__(self, spec: Spec) -> None:
        self._ids, self._size = np.load(spec["ids"], mmap_mode="r"), spec["block"]

    def __len__(self) -> int:
        return len(self._ids) // self._size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self._ids[number * self._size :][: self._size].astype(np.int64))
        return {"input_ids": block, "labels": block}


def hf_trainer(spec: Spec) -> None:
    """transformers.Trainer. Its own settings here are those of TrainingArguments, with bf16 on a GPU."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    done = rounds(spec)

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            next(done)

    equal = {
        "learning_rate": RATE,
        "adam_beta2": BETAS[1],
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "logging_steps": LOG_EVERY,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=spec["batch"],
            max_steps=spec["max_steps"],
            bf16=spec["precision"] == "bf16",
            use_cpu=spec["device"] == "cpu",
            save_strategy="no",
            report_to=[],
            **(equal if spec["equal"] else {}),
        )
        collate = default_data_collator
        Trainer(model_of(spec), arguments, collate, Blocks(spec), callbacks=[Clock()]).train()


# --- the tutorial ---


class TutorialDataset(IterableDataset[Any]):
    """Lists of ids, labels one ahead."""

    def __init__(self, spec: Spec) -> None:
        self._ids, self._size = np.load(spec["ids"]).tolist(), spec["block"]

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for start in range(0, len(self._ids) - self._size, self._size):
            inputs, labels = (self._ids[at : at + self._size] for at in (start, start + 1))
            yield {"input_ids": inputs, "labels": labels}


class ShuffleDataset(IterableDataset[Any]):
    """Draws from a buffer that the dataset fills."""

    def __init__(self, dataset: IterableDataset[Any], size: int) -> None:
        self._dataset, self._size = dataset, size

    def __iter__(self) -> Iterator[Any]:
        buffer: list[Any] = []
        for item in self._dataset:
            if len(buffer) < self._size:
                buffer.append(item)
            else:
                at = int(torch.randint(self._size, ()))
                yield buffer[at]
                buffer[at] = item


def collate_fn(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([item[name] for item in items]) for name in items[0]}


def tutorial(spec: Spec) -> None:
    """The 2021 tutorial: lists through a shuffle buffer and collate_fn, Adam, fp32, the loss read every step."""
    done, model, size = rounds(spec), model_of(spec), spec["model"]["vocab_size"]
    optimizer = fused_adamw(model) if spec["equal"] else torch.optim.Adam(model.parameters(), lr=RATE)
    context = autocast(spec) if spec["equal"] else nullcontext()
    loader = DataLoader(ShuffleDataset(TutorialDataset(spec), 100), spec["batch"], collate_fn=collate_fn)
    model.train()
    while True:
        running_loss = 0.0
        for batch in loader:
            inputs, labels = (batch[name].to(spec["device"]) for name in ("input_ids", "labels"))
            optimizer.zero_grad()
            with context:
                logits = model(inputs).logits
                loss = cross_entropy(logits.view(-1, size), labels.view(-1))
            loss.backward()
            if spec["equal"]:
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            running_loss += loss.item()
            next(done)


# --- nanoGPT ---


def nanogpt(spec: Spec) -> None:
    """In the manner of nanoGPT's train.py, around the model of transformers; compiled on a GPU, dropout 0."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    is_cuda = spec["device"] == "cuda"
    done, model = rounds(spec), model_of({**spec, "equal": True})
    optimizer = fused_adamw(model)
    if is_cuda and not spec["equal"]:
        model = torch.compile(model)
    ids, size, batch = np.load(spec["ids"], mmap_mode="r"), spec["block"], spec["batch"]

    def get_batch() -> Any:
        starts = torch.randint(len(ids) - size - 1, (batch,))
        both = [
            torch.stack([torch.from_numpy(ids[i + ahead : i + ahead + size].astype(np.int64)) for i in starts])
            for ahead in (0, 1)
        ]
        return [part.pin_memory().to("cuda", non_blocking=True) for part in both] if is_cuda else both

    model.train()
    inputs, labels = get_batch()
    for step in range(spec["max_steps"]):
        for group in optimizer.param_groups:
            group["lr"] = RATE
        with autocast(spec):
            logits = model(inputs).logits
            loss = cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))
        inputs, labels = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            loss.item()
        next(done)


def fabric(spec: Spec) -> None:
    """Lightning Fabric, the loop of its documentation; bf16-mixed on a GPU."""
    from lightning.fabric import Fabric

    precision: Any = "bf16-mixed" if spec["precision"] == "bf16" else "32-true"
    lightning = Fabric(accelerator=spec["device"], devices=1, precision=precision)
    lightning.launch()
    done, bare = rounds(spec), model_of(spec)
    own = torch.optim.AdamW(bare.parameters(), lr=RATE)
    model, optimizer = lightning.setup(bare, fused_adamw(bare) if spec["equal"] else own)
    loader = lightning.setup_dataloaders(DataLoader(Blocks(spec), spec["batch"], shuffle=True, drop_last=True))
    model.train()
    while True:
        for step, batch in enumerate(loader):
            optimizer.zero_grad()
            loss = model(**batch).loss
            lightning.backward(loss)
            if spec["equal"]:
                lightning.clip_gradients(model, optimizer, max_norm=CLIP)
            optimizer.step()
            if step % LOG_EVERY == 0:
                loss.item()
            next(done)


LOOPS: dict[str, Callable[[Spec], None]] = {loop.__name__: loop for loop in (hf_trainer, tutorial, nanogpt, fabric)}

if __name__ == "__main__":
    LOOPS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
