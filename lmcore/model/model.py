"""The transformers model of a run: with initial weights, or with those of a checkpoint."""

import fnmatch
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lmcore.errors import ConfigError, RunError, StoreError
from lmcore.model.attention import use_own_attention
from lmcore.model.loss import sees_ahead
from lmcore.runs.initial_model import InitialModel, in_transformers
from lmcore.runs.run import Run

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Tensors = dict[str, torch.Tensor]


# --- initial weights ---


def new_model(run: Run, resumes: bool = False) -> PreTrainedModel:
    """The run's model with its initial weights: random ones by train.seed, or those of train.init_from.

    With ``resumes`` a checkpoint replaces the weights later, so train.init_from is not read. Raises RunError when
    train.init_from has changed since the run began, ConfigError when the model does not support the settings.
    """
    torch.manual_seed(run.config.train.seed)
    model = _continued_model(run) if run.config.train.init_from and not resumes else blank_model(run)
    if run.config.train.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"train.gradient_checkpointing: {type(model).__name__} does not support it")
        # The second name is that before transformers 5.23.
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    return model


def blank_model(run: Run) -> PreTrainedModel:
    """A model of the run's shape, whose weights are loaded later; train.init_from is not read."""
    return _fitted(AutoModelForCausalLM.from_config(in_transformers(run.shape), dtype=torch.float32), run)


def _fitted(model: PreTrainedModel, run: Run) -> PreTrainedModel:
    """The model, prepared for the run's batches."""
    use_own_attention(model)
    embedding = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) == run.tokenizer_info.eos_id:
        embedding.padding_idx = None  # otherwise the embedding of EOS has no gradient
    if run.config.dataset.document_masking and "position_ids" not in signature(model.forward).parameters:
        raise ConfigError(f"dataset.document_masking: {type(model).__name__} takes no position_ids")
    return model


def _continued_model(run: Run) -> PreTrainedModel:
    initial = InitialModel.find(run.config.train.init_from)
    if initial.fingerprint() != run.identity["first_weights"]:
        raise RunError(
            f"the weights of {initial.name} (train.init_from) have changed since the run began: start another run with "
            "the same command, and with another --run NAME if the run has a name"
        )
    initial.verify()
    if not initial.is_checkpoint:
        return _fitted(_opened(initial.folder), run)
    model = blank_model(run)
    # Not strict: the file holds tied weights once, and no buffers.
    model.load_state_dict(load_file(initial.folder / "model.safetensors"), strict=False)
    return model


def _opened(folder: Path) -> PreTrainedModel:
    """The model in a folder. Raises ConfigError when it lacks weights, or is not a causal language model."""
    try:
        opened = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"train.init_from: transformers cannot open a language model in {folder}: {error}") from error
    model: PreTrainedModel = opened[0]
    missing = sorted({*opened[1]["missing_keys"], *opened[1]["mismatched_keys"]})
    if missing:
        raise ConfigError(
            f"train.init_from: {folder} lacks {len(missing)} of the weights of {type(model).__name__}, such as "
            f"{', '.join(map(str, missing[:3]))}"
        )
    if sees_ahead(model):
        raise ConfigError(f"train.init_from: {type(model).__name__} in {folder} is not causal: it sees later tokens")
    return model


def freeze_all_but(model: PreTrainedModel, patterns: list[str]) -> None:
    """Freeze all parameters whose names match no pattern.

    Raises ConfigError when a pattern matches nothing, or there are no patterns.
    """
    names = [name for name, _ in model.named_parameters()]
    if not patterns:
        raise ConfigError("train.trainable is empty, so no parameter would be trained: give a pattern, or * for all")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"train.trainable: no parameter matches {pattern!r}; the first of {len(names)} names are "
                f"{', '.join(names[:4])}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


# --- trained weights ---


def trained_model(run: Run, checkpoint: Path) -> PreTrainedModel:
    """The run's model with the weights of a checkpoint folder."""
    model = blank_model(run)
    load_weights(checkpoint, model)
    return model


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint folder into ``model``. Raises StoreError when names or shapes differ."""
    saved, own = load_file(path / "model.safetensors"), model_tensors(model)
    # copy_ would broadcast a weight of another shape.
    shapes, own_shapes = ({(name, *t.shape) for name, t in tensors.items()} for tensors in (saved, own))
    if shapes != own_shapes:
        raise StoreError(
            f"checkpoint {path} is of another model: {sorted(shapes ^ own_shapes)[:4]} are in one of them only"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(saved[name], tensor))


def model_tensors(model: nn.Module) -> Tensors:
    """The parameters by name, tied ones once. Training changes no other state of transformers' models."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``tensor``, equal on all ranks, moved to the device of ``target`` and sharded like it."""
    tensor = tensor.to(target.device)
    if isinstance(target, DTensor) and not isinstance(tensor, DTensor):
        # Without a source rank, none has to send anything.
        return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor


# --- counts ---


def parameter_count(model: PreTrainedModel, trainable_only: bool = False) -> int:
    """The number of parameters. Tied weights count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Floating-point operations to train on one token: 6 N + 12 L C T (PaLM, arXiv 2204.02311, appendix B).

    N parameters that multiply, L layers, C numbers in all queries of a token, T tokens of a block. Tables that are
    looked up, of positions and untied input embeddings, do not multiply. Attention counts as if it saw the whole block,
    and activations that are computed twice count once.
    """
    shape: Any = model.config.get_text_config()
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = sum(weight.numel() for weight in tables if head is None or weight is not head.weight)
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    width: int = head_size * shape.num_attention_heads
    return 6.0 * (parameter_count(model) - looked_up) + 12.0 * int(shape.num_hidden_layers) * width * block_size
