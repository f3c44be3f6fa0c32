"""How long a training will take on this machine, after its first seconds, and which preset is faster."""

import logging
from collections.abc import Callable
from pathlib import Path

from lmcore.clock import duration
from lmcore.progress import Standing
from lmcore.runs.metrics import training_note
from lmcore.runs.run import Run
from lmcore.runs.training_progress import STEPS, TrainingProgress
from lmcore.settings.config import ModelConfig, RunConfig
from lmcore.settings.read import preset_names, read_preset
from lmcore.store.artifacts import read_manifest

_LONG = 3600.0
"""Seconds. A longer training is logged as a warning."""


def training_poll(run: Run, logger: logging.Logger) -> Callable[[], Standing]:
    """A function that returns the progress of a run's training. It logs the forecast once, when it is known.

    The progress file of an earlier start is removed.
    """
    run.progress.unlink(missing_ok=True)
    last: TrainingProgress | None = None
    is_said = False

    def poll() -> Standing:
        nonlocal last, is_said
        last = TrainingProgress.read(run.progress) or last
        if last is None:
            return Standing(note="loading")
        if last.seconds_left is not None and not is_said:
            is_said = True
            logger.log(*forecast(last, run.config, _train_tokens(run.dataset_folder)))
        return Standing(last.step, last.total_steps, _note(last, run.metrics), last.seconds_left)

    return poll


def forecast(progress: TrainingProgress, config: RunConfig, train_tokens: int) -> tuple[int, str]:
    """A log level and a sentence on how long the training takes. From an hour on it names what takes less.

    ``train_tokens`` are the tokens of the dataset, for presets that train by epochs.
    """
    seconds, left = progress.seconds_left or 0.0, progress.total_steps - progress.step
    device = {"cpu": "this CPU", "cuda": "this GPU"}.get(progress.device, "this machine")
    steps = f"{progress.total_steps:,} steps" if left > 0.9 * progress.total_steps else f"{left:,} steps left"
    text = f"At this speed the training takes about {duration(seconds)} on {device} ({steps})"
    if seconds < _LONG:
        return logging.INFO, text
    rate = (progress.seconds_per_step or 0.0) / progress.flops_per_step
    cures = [
        f"the preset {name} would take about {duration(cost)}" for name, cost in _fitting(rate, config, train_tokens)
    ]
    cures.append("with train.max_minutes it saves and stops, and the same command continues")
    return logging.WARNING, f"{text}. To take less time: {'; '.join(cures)}"


def preset_seconds(config: RunConfig, seconds_per_flop: float, train_tokens: int) -> float:
    """About how long a training with these settings takes."""
    train, block_size = config.train, config.dataset.block_size
    step_tokens = train.batch_size * block_size
    tokens = train.max_steps * step_tokens or train.max_tokens or train.epochs * train_tokens
    return tokens * estimated_flops_per_token(config.model, config.tokenizer.vocab_size, block_size) * seconds_per_flop


def training_flops(parameters: float, layers: int, width: int, block_size: int) -> float:
    """Floating-point operations to train on one token: 6 N + 12 L C T (PaLM, arXiv 2204.02311, appendix B).

    N ``parameters`` that multiply, L ``layers``, C numbers in all queries of a token (``width``), T tokens of a block.
    Attention counts as if it saw the whole block, and activations that are computed twice count once.
    """
    return 6.0 * parameters + 12.0 * layers * width * block_size


def estimated_flops_per_token(model: ModelConfig, vocabulary: int, block_size: int) -> float:
    """``training_flops`` by the settings alone: without biases and norms."""
    width, is_gated = model.width, model.architecture != "gpt2"
    key_share = (model.kv_heads or model.heads) / model.heads
    mlp = (3 if is_gated else 2) * width * (model.mlp_width or (8 * width / 3 if is_gated else 4 * width))
    layer = (2 + 2 * key_share) * width**2 + mlp
    return training_flops(model.layers * layer + width * vocabulary, model.layers, width, block_size)


def _fitting(seconds_per_flop: float, config: RunConfig, train_tokens: int) -> list[tuple[str, float]]:
    """The largest preset that trains within an hour, with its seconds; the preset in use does not count."""
    presets = {name: RunConfig.model_validate(read_preset(name)) for name in preset_names()}
    fitting = [
        (preset_seconds(preset, seconds_per_flop, train_tokens), name)
        for name, preset in presets.items()
        if (preset.model, preset.train.max_steps) != (config.model, config.train.max_steps)
    ]
    return [(name, cost) for cost, name in sorted(fitting) if cost < _LONG][-1:]


def _train_tokens(dataset: Path) -> int:
    return int(read_manifest(dataset)["splits"]["train"]["tokens"])


def _note(progress: TrainingProgress, metrics: Path) -> str:
    if progress.phase != STEPS:
        return progress.phase
    return training_note(metrics) or ("the first step" if progress.step == 0 else "")
