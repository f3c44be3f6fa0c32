"""Optimizers, and the learning rate as a pure function of the step."""

import math

import torch

from lmcore.config import TrainConfig


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that require gradients; only matrices decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    on_gpu = any(parameter.is_cuda for parameter in trained)
    return kind(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=on_gpu or None,
    )


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Of step ``step`` (from 0) of ``total_steps``: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    share = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.min_learning_rate + share * (config.learning_rate - config.min_learning_rate)
