"""Checkpoints: everything needed to go on training as if nothing had happened.

    checkpoints/step-00000500/  model.safetensors  optimizer.safetensors  random.safetensors  state.json  manifest.json

Each is a sealed folder (see store.py). Nothing is pickled. Loading goes from the newest to the oldest; one that
does not prove whole is set aside as bad-step-... and the next older one is used.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lmcore.errors import FormatError, StoreError
from lmcore.model import new_model
from lmcore.run import Run
from lmcore.store import json_bytes, open_sealed, read_manifest, remove, sealed_folder

State = dict[str, Any]
_log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    keep: int,
) -> None:
    """Write the checkpoint of ``step`` under ``folder`` and remove all but the newest ``keep``."""
    with sealed_folder(folder / f"step-{step:08d}", lambda: {"kind": "checkpoint", "step": step}) as new:
        save_file(_model_tensors(model), new / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), new / "optimizer.safetensors")
        save_file(_random_state(), new / "random.safetensors")
        (new / "state.json").write_bytes(json_bytes({**state, "step": step}))
    for old in _newest_first(folder)[keep:]:
        remove(old)


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """Restore the newest whole checkpoint under ``folder`` and return its state; None if there is none."""
    path = newest_checkpoint(folder)
    if path is None:
        return None
    load_weights(path, model)
    _load_optimizer(load_file(path / "optimizer.safetensors"), model, optimizer)
    _set_random_state(load_file(path / "random.safetensors"))
    state: State = json.loads((path / "state.json").read_bytes())
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that proves whole; damaged newer ones are set aside with a warning."""
    for path in _newest_first(folder):
        try:
            open_sealed(path)
        except FormatError:
            raise
        except StoreError as error:
            aside = path.with_name(f"bad-{path.name}")
            remove(aside)
            os.rename(path, aside)
            _log.warning("checkpoint %s set aside as %s: %s", path.name, aside.name, error)
        else:
            return path
    return None


def trained_model(run: Run, checkpoint: Path) -> PreTrainedModel:
    """The run's model with the weights of a checkpoint folder."""
    model = new_model(run)
    load_weights(checkpoint, model)
    return model


def weights_hash(checkpoint: Path) -> str:
    """Hash of the weights in a checkpoint folder, by its manifest."""
    return str(read_manifest(checkpoint)["files"]["model.safetensors"]["blake3"])


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Copy the weights of a checkpoint folder into ``model``. Raises StoreError when it is of another model."""
    saved = load_file(path / "model.safetensors")
    own = _model_tensors(model)
    # copy_ would stretch a weight of another shape to fit.
    shapes, own_shapes = ({(name, *t.shape) for name, t in tensors.items()} for tensors in (saved, own))
    if shapes != own_shapes:
        raise StoreError(
            f"checkpoint {path} is of another model: {sorted(shapes ^ own_shapes)[:4]} stand on one side only"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once. transformers' models keep no other state that training changes."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    for entry, tensor in tensors.items():
        name, key = entry.rsplit("/", 1)
        parameter = parameters[name]
        # Adam keeps its step count on the CPU unless it is fused, in which case the loaded moments say where.
        on_cpu = key == "step" and not any(group.get("fused") for group in optimizer.param_groups)
        optimizer.state[parameter][key] = tensor if on_cpu else tensor.to(parameter.device)


def _random_state() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
