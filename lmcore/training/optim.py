"""Optimizers: steps that can be skipped, and a state by the names of parameters.

Adam and AdamW use one fused kernel on CUDA and on the CPU. On one core of a server CPU it needs a quarter of the time
of torch's default, and its results are equal for any number of threads.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import Embedding, Module, ModuleList, Parameter

from lmcore.errors import StoreError
from lmcore.model.model import like
from lmcore.settings.config import TrainConfig

_Owners = dict[Parameter, torch.optim.Optimizer]


@dataclass(frozen=True)
class Optimizers:
    """The optimizers of one model; each updates a part of the trained parameters."""

    parts: list[torch.optim.Optimizer]

    @classmethod
    def from_config(cls, model: Module, config: TrainConfig) -> Self:
        """Adam or AdamW over the parameters that require gradients, or Muon and AdamW; only matrices decay.

        Muon (arXiv 2502.16982) takes the matrices inside the model's blocks, its updates scaled to the size of
        AdamW's. The scale and the update are the same for a matrix and its transpose, so transformers' Conv1D, which
        stores (in, out), needs no care. Call it after fully_shard, which puts other parameters into the model.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if config.optimizer != "muon":
            return cls([_adam(trained, config)])
        inside = _block_matrices(model)
        matrices = [p for p in trained if p in inside]
        others = [p for p in trained if p not in inside]
        return cls(([_muon(matrices, config)] if matrices else []) + ([_adam(others, config)] if others else []))

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step for all parameters."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Remove the gradients, and free their memory."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, skip: Tensor) -> None:
        """Update the parameters by their gradients, unless ``skip`` (a bool, shape ()) is true.

        Fused kernels read ``skip`` on the device, so the CPU does not wait. For Muon it waits. A skipped first step
        creates Adam's moments as zeros, as the next step would.
        """
        for part in self.parts:
            if _is_fused(part):
                part.found_inf = skip.float()  # type: ignore[attr-defined]  # read by torch's fused Adam
                part.step()
            elif not skip:
                part.step()

    def tensors(self, model: Module) -> dict[str, Tensor]:
        """The state as ``parameter/key``: Adam's step, exp_avg and exp_avg_sq, Muon's momentum_buffer.

        Parameters without an update have no entries. The tensors of sharded parameters are DTensors.
        """
        owners = self._owners()
        return {
            f"{name}/{key}": value.contiguous()
            for name, parameter in model.named_parameters()
            if parameter in owners
            for key, value in owners[parameter].state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor], model: Module) -> None:
        """Replace the state by a copy of ``tensors``, as ``tensors()`` returned them, sharded like ``model``.

        Raises StoreError, before anything changes, when they are of another type of optimizer or another model. Adam
        and AdamW have the same state.
        """
        parameters, owners = dict(model.named_parameters()), self._owners()
        saved: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for entry, tensor in tensors.items():
            name, key = entry.rsplit("/", 1)
            saved[name][key] = tensor
        for name, state in saved.items():
            _check(name, state, parameters.get(name), owners)
        for part in self.parts:
            part.state.clear()
        for name, state in saved.items():
            parameter = parameters[name]
            part = owners[parameter]
            for key, value in state.items():
                # Adam counts its steps on the CPU unless it is fused.
                step = value.clone().to(parameter.device if _is_fused(part) else "cpu")
                part.state[parameter][key] = step if key == "step" else like(value.clone(), parameter)

    def _owners(self) -> _Owners:
        return {p: part for part in self.parts for group in part.param_groups for p in group["params"]}


def _adam(parameters: list[Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return kind(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=all(p.device.type in ("cuda", "cpu") for p in parameters) or None,
    )


def _muon(matrices: list[Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        matrices,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )


def _block_matrices(model: Module) -> set[Parameter]:
    """The 2-D weights inside the model's blocks, which are what its module lists hold.

    Embeddings and the output head are outside; an update of one piece's row has nothing to do with another's.
    """
    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    inside = [module for blocks in lists for module in blocks.modules() if not isinstance(module, Embedding)]
    return {p for module in inside for p in module.parameters(recurse=False) if p.ndim == 2}


def _is_fused(part: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in part.param_groups)


def _check(name: str, state: dict[str, Tensor], parameter: Parameter | None, owners: _Owners) -> None:
    """Raise StoreError unless ``state`` has the form of the state that its optimizer keeps for ``parameter``."""
    part, shape = (owners.get(parameter), tuple(parameter.shape)) if parameter is not None else (None, ())
    own: dict[str, tuple[int, ...]] = {}
    if part is not None:
        is_muon = isinstance(part, torch.optim.Muon)
        own = {"momentum_buffer": shape} if is_muon else {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    saved = {key: tuple(value.shape) for key, value in state.items()}
    if saved != own:
        words, own_words = (
            ", ".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items())) or "nothing"
            for shapes in (saved, own)
        )
        raise StoreError(
            f"the saved optimizer's state does not fit: of {name} it has {words}, and "
            f"{type(part).__name__ if part else 'the optimizer'} here has {own_words}. It goes on only with the "
            "optimizer, model and train.trainable that it was saved with"
        )
