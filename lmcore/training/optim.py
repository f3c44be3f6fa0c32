"""Optimizers: steps that can be skipped, and a state by the names of parameters.

Adam and AdamW use one fused kernel on CUDA and on the CPU. On one core of a server CPU it needs a quarter of the time
of torch's default, and its results are equal for any number of threads.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import Embedding, Module, ModuleList, Parameter

from lmcore.errors import StoreError
from lmcore.model.model import like
from lmcore.settings.config import TrainConfig


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
        matrices, others = [p for p in trained if p in inside], [p for p in trained if p not in inside]
        return cls(([_muon(matrices, config)] if matrices else []) + ([_adam(others, config)] if others else []))

    def set_learning_rate(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

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
        self._check(tensors, model)
        parameters, owners = dict(model.named_parameters()), self._owners()
        for part in self.parts:
            part.state.clear()
        for entry, tensor in tensors.items():
            name, _, key = entry.rpartition("/")
            parameter = parameters[name]
            part = owners[parameter]
            # Adam counts its steps on the CPU unless it is fused.
            step = tensor.clone().to(parameter.device if _is_fused(part) else "cpu")
            part.state[parameter][key] = step if key == "step" else like(tensor.clone(), parameter)

    def _check(self, tensors: dict[str, Tensor], model: Module) -> None:
        saved = {entry: tuple(tensor.shape) for entry, tensor in tensors.items()}
        names, owners, own = {entry.rpartition("/")[0] for entry in saved}, self._owners(), dict[str, tuple[int, ...]]()
        for name, parameter in model.named_parameters():
            if name in names and parameter in owners:
                is_muon, shape = isinstance(owners[parameter], torch.optim.Muon), tuple(parameter.shape)
                form = {"momentum_buffer": shape} if is_muon else {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
                own |= {f"{name}/{key}": each for key, each in form.items()}
        if saved != own:
            theirs, ours = (
                ", ".join(f"{entry} {list(shape)}" for entry, shape in sorted(some)[:4]) or "nothing"
                for some in (saved.items() - own.items(), own.items() - saved.items())
            )
            kinds = " and ".join(type(part).__name__ for part in self.parts)
            raise StoreError(
                f"the saved optimizer's state does not fit: only it has {theirs}, and only that here ({kinds}) has "
                f"{ours}. It goes on only with the optimizer, model and train.trainable that it was saved with"
            )

    def _owners(self) -> dict[Parameter, torch.optim.Optimizer]:
        return {p: part for part in self.parts for group in part.param_groups for p in group["params"]}


def _adam(parameters: list[Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = ({"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0})
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
