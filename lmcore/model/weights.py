"""Loading the weights of a checkpoint folder into a model."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lmcore.errors import StoreError
from lmcore.model.distributed import like
from lmcore.model.model import blank_model
from lmcore.runs.run import Run

Tensors = dict[str, torch.Tensor]


def trained_model(run: Run, checkpoint: Path) -> PreTrainedModel:
    """The run's model with the weights of a checkpoint folder."""
    model = blank_model(run)
    load_weights(checkpoint, model)
    return model


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Copy the weights of a checkpoint folder into ``model``. Raises StoreError when names or shapes differ."""
    saved = load_file(path / "model.safetensors")
    own = model_tensors(model)
    # copy_ would broadcast a weight of another shape.
    shapes, own_shapes = ({(name, *t.shape) for name, t in tensors.items()} for tensors in (saved, own))
    if shapes != own_shapes:
        raise StoreError(
            f"checkpoint {path} is of another model: {sorted(shapes ^ own_shapes)[:4]} are in one of them only"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(saved[name], tensor))


def model_tensors(model: torch.nn.Module) -> Tensors:
    """The parameters by name, tied ones once. Training changes no other state of transformers' models."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
